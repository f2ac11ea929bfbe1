"""The four kinds of pyramids (FPN, figure 1)."""

from collections.abc import Callable

import pytest
import torch
from detectors import make_model
from torch.nn.functional import interpolate

from twostage.data.batch import Batch, Targets
from twostage.models.backbones.fpn import FPN, ImagePyramid
from twostage.weights.fit import as_backbone, load_fitting

STRIDES = {"top_down": (4, 8, 16, 32), "levels": (4, 8, 16, 32), "single": (16,), "image": (8, 16, 32, 64)}
SIZES = [(96, 128), (80, 112)]


@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "faster_rcnn_lite0_fpn"])
def test_each_learns_and_detects(
    name: str, kind: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = make_model(name, 3, pyramid=kind, rpn_top_train=60, rpn_keep_train=40, head_channels=32)
    assert model.backbone.strides == STRIDES[kind]
    batch = make_batch(*SIZES)
    losses = model.train()(batch, make_targets(SIZES, [3, 1]))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        maps = model.eval().features(batch)
    for features, stride in zip(maps, STRIDES[kind], strict=True):
        assert features.shape == (2, 64, 96 // stride + (96 % stride > 0), 128 // stride)


def test_a_single_map_has_the_anchors_of_all_levels() -> None:
    model = make_model("faster_rcnn_tiny_fpn", 3, pyramid="single")
    assert model.rpn.anchors.per_position == (4 * 3,)
    # As a weights file written before holds them, merged.
    again = make_model("faster_rcnn_tiny_fpn", 3, pyramid="single", anchor_sizes=[[16, 32, 64, 128]])
    assert torch.equal(again.rpn.anchors.get_buffer("cell0"), model.rpn.anchors.get_buffer("cell0"))


def test_levels_and_fpn_differ_in_the_top_down_pathway_only() -> None:
    with_it, without = (
        make_model("faster_rcnn_resnet18_fpn", 3, pyramid=kind).eval() for kind in ("top_down", "levels")
    )
    assert isinstance(with_it.backbone, FPN)
    assert not without.backbone.top_down
    without.load_state_dict(with_it.state_dict())
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        a, b = with_it.backbone(x), without.backbone(x)
    assert [m.shape for m in a] == [m.shape for m in b]
    torch.testing.assert_close(a[3], b[3])  # nothing is coarser
    assert not torch.allclose(a[0], b[0])


@pytest.mark.parametrize("kind", STRIDES)
def test_each_takes_the_whole_body_from_a_file(kind: str) -> None:
    model = make_model("faster_rcnn_tiny_fpn", 3, pyramid=kind)
    body = model.backbone.body
    state = {name: torch.full_like(value, 3) for name, value in body.state_dict().items()}
    loaded, _ = load_fitting(model, as_backbone(model, state))
    assert len([name for name in loaded if name.startswith("backbone.")]) == len(state)
    assert all((value == 3).all() for value in body.state_dict().values())


def test_an_image_pyramid_is_one_network_over_several_sizes() -> None:
    model = make_model("faster_rcnn_tiny_fpn", 3, pyramid="image").eval()
    assert isinstance(model.backbone, ImagePyramid)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = model.backbone(x)
        own = model.backbone.level(x)[0]
        half = model.backbone.level(interpolate(x, (32, 48), mode="bilinear", antialias=True))[0]
    torch.testing.assert_close(maps[1], own)
    torch.testing.assert_close(maps[2], half)
