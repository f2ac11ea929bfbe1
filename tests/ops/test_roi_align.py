from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from twostage.ops.accelerator import roi_align as accelerator
from twostage.ops.roi_align import roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16)
HEIGHT, WIDTH = 160, 200

ADVERSARIAL = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],  # padding
        [0.0, 0.0, float(WIDTH), float(HEIGHT)],
        [16.0, 16.0, 48.0, 48.0],  # on cell borders of every level
        [50.0, 60.0, 50.0, 90.0],  # no width
        [50.0, 60.0, 20.0, 30.0],  # inverted
        [50.0, 30.0, 20.0, 60.0],  # inverted along x
        [-90.0, -90.0, -30.0, -30.0],  # outside
        [-20.0, -20.0, 30.0, 30.0],
        [180.0, 140.0, 260.0, 230.0],
        [-4.0, -4.0, 4.0, 4.0],  # samples exactly one cell outside
        [198.0, 158.0, 200.0, 160.0],
        [3.7, 5.1, 3.9, 5.2],  # below a cell
        [-60.0, 20.0, 260.0, 25.0],
    ]
)


def example(
    n: int = 2, p: int = 40, c: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(n, c, int(HEIGHT * s), int(WIDTH * s), generator=g, dtype=dtype) for s in SCALES]
    corners = torch.rand(n, p, 2, generator=g) * torch.tensor([WIDTH, HEIGHT]) - 10
    boxes = torch.cat([corners, corners + 120 * torch.rand(n, p, 2, generator=g) ** 2], dim=-1)
    boxes = torch.cat([boxes, ADVERSARIAL.expand(n, -1, -1)], dim=1)
    return features, boxes.to(dtype), torch.randint(len(SCALES), boxes.shape[:2], generator=g)


def reference(
    features: Sequence[Tensor], boxes: Tensor, levels: Tensor, size: tuple[int, int], ratio: int, aligned: bool
) -> Tensor:
    """Torchvision, level by level."""
    n, p = levels.shape
    image = torch.arange(n).repeat_interleave(p)[:, None].to(boxes)
    regions = torch.cat([image, boxes.flatten(0, 1)], dim=1)
    out = torch.zeros(n * p, features[0].shape[1], *size, dtype=features[0].dtype)
    for level, (feature, scale) in enumerate(zip(features, SCALES, strict=True)):
        some = (levels.flatten() == level).nonzero()[:, 0]
        out = out.index_copy(0, some, tv.roi_align(feature, regions[some], size, scale, ratio, aligned))
    return out.view(n, p, *out.shape[1:])


def device_roi_align(
    features, boxes, levels, *, scales, output_size, sampling_ratio, aligned, max_samples=27
) -> Tensor:
    """The kernel of fixed shapes, on the CPU."""
    arguments = (boxes, levels, scales, output_size, sampling_ratio, aligned, max_samples)
    return accelerator.forward(features, *arguments).permute(0, 1, 4, 2, 3)


both = pytest.mark.parametrize("kernel", [roi_align, device_roi_align])


@both
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_equals_torchvision(kernel: Callable[..., Tensor], aligned: bool, ratio: int, size: tuple[int, int]) -> None:
    features, boxes, levels = example()
    out = kernel(features, boxes, levels, scales=SCALES, output_size=size, sampling_ratio=ratio, aligned=aligned)
    expected = reference(features, boxes, levels, size, ratio, aligned)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_in_the_features_equals_torchvision(aligned: bool, ratio: int) -> None:
    features, boxes, levels = example()
    ours, theirs = ([f.clone().requires_grad_() for f in features] for _ in range(2))
    out = roi_align(ours, boxes, levels, scales=SCALES, sampling_ratio=ratio, aligned=aligned)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, ours, gradient)
    expected = torch.autograd.grad(reference(theirs, boxes, levels, (7, 7), ratio, aligned), theirs, gradient)
    arguments = (boxes, levels, SCALES, (7, 7), ratio, aligned, 27)
    shapes = [side for f in features for side in f.shape[2:]]
    fixed = accelerator.features_gradient(gradient.permute(0, 1, 3, 4, 2), shapes, *arguments)
    for a, b, c in zip(got, expected, fixed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
        torch.testing.assert_close(a, c, rtol=0, atol=2e-4)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_numerical_gradients_in_features_and_boxes(aligned: bool, ratio: int) -> None:
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 1, h, w, generator=g, dtype=torch.float64) for h, w in ((6, 7), (3, 4), (2, 2))]
    features = [f.requires_grad_() for f in features]
    corners = torch.rand(2, 3, 2, generator=g, dtype=torch.float64) * 30 - 3
    boxes = torch.cat([corners, corners + 20 * torch.rand(2, 3, 2, generator=g, dtype=torch.float64)], dim=-1)
    boxes, levels = boxes.requires_grad_(), torch.randint(3, (2, 3), generator=g)

    def function(boxes: Tensor, *features: Tensor) -> Tensor:
        return roi_align(features, boxes, levels, scales=SCALES, output_size=2, sampling_ratio=ratio, aligned=aligned)

    assert torch.autograd.gradcheck(function, (boxes, *features), eps=1e-6, atol=1e-4)


def test_devices_without_bags_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes, levels = example()
    out = device_roi_align(features, boxes, levels, scales=SCALES, output_size=(7, 7), sampling_ratio=2, aligned=True)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).permute(0, 1, 3, 4, 2)
    arguments = (gradient, [s for f in features for s in f.shape[2:]], boxes, levels, SCALES, (7, 7), 2, True, None)
    gradients = accelerator.features_gradient(*arguments)
    monkeypatch.setattr(accelerator, "_BAGS", ())
    slow = device_roi_align(features, boxes, levels, scales=SCALES, output_size=(7, 7), sampling_ratio=2, aligned=True)
    torch.testing.assert_close(slow, out, rtol=0, atol=1e-5)
    for a, b in zip(accelerator.features_gradient(*arguments), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_both_kernels_give_the_boxes_one_gradient(ratio: int) -> None:
    features, boxes, levels = example()
    boxes.requires_grad_()
    out = roi_align(features, boxes, levels, scales=SCALES, sampling_ratio=ratio)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(out, boxes, gradient)
    arguments = (boxes.detach(), levels, SCALES, (7, 7), ratio, False, 27)
    fixed = accelerator.boxes_gradient(gradient.permute(0, 1, 3, 4, 2), features, *arguments)
    assert got.abs().sum() > 0
    torch.testing.assert_close(got, fixed, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("aligned", [False, True])
def test_capped_samples_change_only_boxes_that_wanted_more(kernel: Callable[..., Tensor], aligned: bool) -> None:
    features, boxes, levels = example()
    settings = {"scales": SCALES, "output_size": (7, 7), "sampling_ratio": 0, "aligned": aligned}
    free, capped = (kernel(features, boxes, levels, max_samples=cap, **settings) for cap in (27, 2))
    scale = torch.tensor(SCALES)[levels][..., None]
    fits = ((boxes[..., 2:] - boxes[..., :2]) * scale / 7).ceil().le(2).all(-1)
    assert 10 < fits.sum() < fits.numel() - 10
    torch.testing.assert_close(free[fits], capped[fits], rtol=0, atol=1e-5)
    both_kernels = roi_align(features, boxes, levels, max_samples=2, **settings)
    torch.testing.assert_close(capped, both_kernels, rtol=0, atol=1e-5)


def test_adaptive_sampling_on_fixed_shapes_needs_a_cap() -> None:
    features, boxes, levels = example()
    with pytest.raises(ValueError, match="max_samples"):
        accelerator.forward(features, boxes, levels, SCALES, (7, 7), 0, False, None)


@both
def test_bf16_features_keep_float32_coordinates(kernel: Callable[..., Tensor]) -> None:
    features, boxes, levels = example()
    settings = {"scales": SCALES, "output_size": (7, 7), "sampling_ratio": 2, "aligned": False}
    out = kernel([f.bfloat16() for f in features], boxes, levels, **settings)
    assert out.dtype == torch.bfloat16
    exact = kernel([f.bfloat16().float() for f in features], boxes, levels, **settings)
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.04)
    assert (out.float() - exact).abs().mean() < 0.004


def test_bf16_gradients() -> None:
    features, boxes, levels = example()
    exact, half = [f.requires_grad_() for f in features], [f.detach().bfloat16().requires_grad_() for f in features]
    gradients = []
    for maps in (exact, half):
        sides = boxes.clone().requires_grad_()
        out = roi_align(maps, sides, levels, scales=SCALES)
        gradients.append(torch.autograd.grad(out.float().square().sum(), [sides, *maps]))
    assert gradients[1][0].dtype == torch.float32
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 0.02 * a.norm()


def test_memory_is_channels_last_and_gradients_too() -> None:
    features, boxes, levels = example()
    features = [f.contiguous(memory_format=torch.channels_last).requires_grad_() for f in features]
    out = roi_align(features, boxes, levels, scales=SCALES)
    assert out.permute(0, 1, 3, 4, 2).is_contiguous()
    out.sum().backward()
    for feature in features:
        assert feature.grad is not None
        assert feature.grad.is_contiguous(memory_format=torch.channels_last)


def test_no_boxes_no_images_and_levels_without_boxes() -> None:
    features, boxes, levels = example()
    features = [f.requires_grad_() for f in features]
    for some in (boxes[:, :0], boxes[:, :1]):
        out = roi_align(features, some, torch.zeros(2, some.shape[1], dtype=torch.int64), scales=SCALES)
        assert out.shape == (2, some.shape[1], 5, 7, 7)
        for gradient in torch.autograd.grad(out.sum(), features):
            assert gradient.isfinite().all()
    empty = [f.detach()[:0] for f in features]
    assert roi_align(empty, boxes[:0], levels[:0], scales=SCALES).shape == (0, boxes.shape[1], 5, 7, 7)


@both
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_that_are_no_numbers_do_no_harm_to_others(kernel: Callable[..., Tensor], ratio: int) -> None:
    features, boxes, levels = example()
    settings = {"scales": SCALES, "output_size": (7, 7), "sampling_ratio": ratio, "aligned": False}
    expected = kernel(features, boxes, levels, **settings)
    bad = boxes.clone()
    bad[:, 0], bad[:, 1, 2], bad[:, 2, 0] = torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(kernel(features, bad, levels, **settings)[:, 3:], expected[:, 3:])


def test_operators_are_well_formed() -> None:
    features, boxes, levels = example(p=5)
    settings = (list(SCALES), [3, 3], 2, False, None)
    leaves = [f.requires_grad_() for f in features]
    torch.library.opcheck(torch.ops.twostage.roi_align, (leaves, boxes.requires_grad_(), levels, *settings))
    gradient, shapes = torch.randn(2, boxes.shape[1], 3, 3, 5), [side for f in features for side in f.shape[2:]]
    maps, sides = [f.detach() for f in features], boxes.detach()
    torch.library.opcheck(torch.ops.twostage.roi_align_features_gradient, (gradient, shapes, sides, levels, *settings))
    torch.library.opcheck(torch.ops.twostage.roi_align_boxes_gradient, (gradient, maps, sides, levels, *settings))


def test_exports_as_one_node_at_any_batch_and_image_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, features: list[Tensor], boxes: Tensor, levels: Tensor) -> Tensor:
            return roi_align(features, boxes, levels, scales=SCALES)

    features, boxes, levels = example()
    batch = torch.export.Dim("batch", min=1, max=64)
    sides = [{0: batch, 2: torch.export.Dim(f"h{i}", min=2), 3: torch.export.Dim(f"w{i}", min=2)} for i in range(3)]
    program = torch.export.export(
        Module(), (features, boxes, levels), dynamic_shapes=(sides, {0: batch}, {0: batch}), strict=False
    )
    assert [node.target for node in program.graph.nodes].count(torch.ops.twostage.roi_align.default) == 1
    others = [torch.randn(3, 5, 2 * h, h) for h in (20, 10, 5)]
    boxes, levels = boxes[:1].expand(3, -1, -1), levels[:1].expand(3, -1)
    assert torch.equal(program.module()(others, boxes, levels), Module()(others, boxes, levels))
