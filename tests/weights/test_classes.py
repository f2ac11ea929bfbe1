import pytest
import torch
from detectors import fields_of, make_model
from torch import Tensor, nn

from twostage.models.configure import configure
from twostage.models.heads.box import BoxHead
from twostage.models.heads.mask import MaskHead
from twostage.models.heads.retinanet import RetinaNetHead
from twostage.models.zoo import named
from twostage.weights.classes import with_class_rows, with_class_weights
from twostage.weights.fit import load_fitting

GIVEN, WANTED = ("dog", "cat", "bird"), ("cat", "fox", "bird", "dog")
SMALL = {"head_channels": 8, "rpn_channels": 8}
MODELS = [
    "faster_rcnn_tiny_fpn",
    "faster_rcnn_tiny",  # boxes per class
    "mask_rcnn_tiny_fpn",
    "cascade_mask_rcnn_tiny_fpn",
    "hybrid_task_cascade_tiny_fpn",
    "retinanet_tiny_fpn",
]


def detectors(name: str, given: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[nn.Module, nn.Module, list[str]]:
    """A detector of the one, another of the other with what it keeps of the first, and the names of what was loaded."""
    fields = fields_of(name, **SMALL)
    if "hybrid" in name:
        fields["semantic_classes"] = 0
    old, new = (make_model(name, len(names), **fields) for names in (given, wanted))
    for tensor in old.parameters():
        nn.init.normal_(tensor)
    return old, new, load_fitting(new, with_class_rows(new, old.state_dict(), given, wanted)[0])[0]


def heads(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BoxHead | MaskHead | RetinaNetHead)]


def outputs(head: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a head's last layers say of each class for one random input: of all classes, and of background."""
    torch.manual_seed(0)
    if isinstance(head, BoxHead):
        x = torch.randn(2, head.classes.in_features)
        logits, deltas = head.classes(x), head.deltas(x).unflatten(1, (-1, 4))
        said = {"background": logits[:, 0]}
        for row, name in enumerate(names):
            box = deltas[:, 0 if head.stage.class_agnostic else row]
            said[name] = torch.cat([logits[:, row + 1 : row + 2], box], dim=1)
        return said
    if isinstance(head, MaskHead):
        x = torch.randn(1, 5, head.classes.weight.shape[1])
        return {name: head.classes(x, torch.tensor([row])) for row, name in enumerate(names)}
    assert isinstance(head, RetinaNetHead)
    x = torch.randn(1, head.classes.in_channels, 3, 3)
    logits = head.classes(x).unflatten(1, (-1, len(names)))
    return {"boxes": head.deltas(x), **{name: logits[:, :, row] for row, name in enumerate(names)}}


@pytest.mark.parametrize("name", MODELS)
def test_a_class_is_scored_as_before_wherever_its_row_is_now(name: str) -> None:
    old, new, loaded = detectors(name, GIVEN, WANTED)
    assert set(loaded) >= {key for key in old.state_dict() if "head." in key and "num_batches" not in key}
    for before, after in zip(heads(old), heads(new), strict=True):
        first, second = outputs(before, GIVEN), outputs(after, WANTED)
        for key in first:
            torch.testing.assert_close(second[key], first[key])
        assert not torch.allclose(second["fox"], second["cat"])


@pytest.mark.parametrize("name", ["faster_rcnn_tiny", "mask_rcnn_tiny_fpn", "retinanet_tiny_fpn"])
def test_without_a_class_in_common_the_layers_of_classes_begin_anew(name: str) -> None:
    old, new, loaded = detectors(name, ("dog", "cat"), ("nut", "bolt"))
    assert not [key for key in loaded if ".classes." in key]
    for key, tensor in old.state_dict().items():
        if ".classes." in key:
            assert not torch.equal(new.state_dict()[key], tensor)


def test_a_class_agnostic_layer_of_boxes_serves_any_class() -> None:
    old, new, _ = detectors("faster_rcnn_tiny_fpn", ("dog", "cat"), ("nut",))
    assert torch.equal(new.head.deltas.weight, old.head.deltas.weight)


def test_layers_of_another_configuration_begin_anew() -> None:
    """Boxes per class do not fit one box for all classes, nor the reverse, even where the shapes are equal."""
    old, new = make_model("faster_rcnn_tiny", 1, **SMALL), make_model("faster_rcnn_tiny", 2, **SMALL)
    state = old.state_dict() | {"head.deltas.weight": torch.ones(8, 8), "head.deltas.bias": torch.ones(8)}
    assert "head.deltas.weight" not in with_class_rows(new, state, ("dog",), ("dog", "cat"))[0]


def test_layers_with_rows_of_new_classes_are_named() -> None:
    model = make_model("faster_rcnn_tiny", 2, **SMALL)
    state = model.state_dict()
    _, partly = with_class_rows(model, state, ("dog", "cat"), ("dog", "fox"))
    assert partly == {"head.classes.weight", "head.classes.bias", "head.deltas.weight", "head.deltas.bias"}
    _, partly = with_class_rows(model, state, ("dog", "cat"), ("cat", "dog"))
    assert not partly


def test_the_weight_of_a_class_in_the_loss_goes_with_the_class() -> None:
    fields = {"class_weights": (2.0, 3.0, 4.0)}
    for model in ("faster_rcnn_tiny", "cascade_rcnn_tiny_fpn"):
        config = configure(named(model), fields)
        assert with_class_weights(config, GIVEN, WANTED).box_head.class_weights == (3.0, 1.0, 4.0, 2.0)
    for model in ("faster_rcnn_tiny", "retinanet_tiny_fpn"):
        assert with_class_weights(named(model), GIVEN, WANTED) == named(model)
