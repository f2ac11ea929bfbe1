"""The prepared model gives what the trained one gives: every model of the zoo, with oneDNN's primitives and without."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from detectors import fields_of, make_model
from proposing import with_proposals
from torch import Tensor, nn

from twostage import Detector
from twostage.data.batch import Batch, stack_images, stack_targets
from twostage.inference.predictor import make_batch
from twostage.inference.prepare import PreparedModel, prepare, truncated
from twostage.models.build import Model
from twostage.models.fused import FusedConv, FusedLinear
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import ZOO
from twostage.ops.cpu import packed
from twostage.ops.cpu.forms import ChosenConv, ChosenLinear
from twostage.ops.cpu.packed import PackedConv, PackedLinear, PackedPointwise
from twostage.ops.plain import Activation, PlainConv, PlainLinear, Window

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "hardswish": nn.functional.hardswish,
}


@pytest.fixture(params=["packed", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With oneDNN's operators, and as on a machine that lacks them."""
    if request.param == "plain":
        monkeypatch.setattr(packed, "serves", lambda device, dtype: False)
    elif not packed.serves("cpu", torch.float32):
        pytest.skip("this torch has no fused primitives here")
    return request.param


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def lively(name: str, **fields: object) -> Model:
    """A model whose normalisations do something: random statistics, as after training; fields it lacks are left out."""
    with torch.inference_mode(False):
        torch.manual_seed(0)
        model = make_model(name, 3, **fields).to(memory_format=torch.channels_last).eval()
        for module in model.modules():
            if hasattr(module, "running_var"):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_()
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return model


def batch(*sizes: tuple[int, int]) -> Batch:
    torch.manual_seed(0)
    return stack_images([torch.rand(3, *size) for size in sizes])


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def errors(fast: PreparedModel, model: Model, images: Batch) -> list[float]:
    """Of every map, of the outputs of the RPN, and of the head on the trained model's own proposals."""
    images = with_proposals(model, images)
    a, b = model.stages(images), fast.stages(images)
    pairs = [*zip(b.maps, a.maps, strict=True)]
    if isinstance(model, TwoStage):
        head = fast.model.head
        features = head.fuse_features(b.maps)
        predictions = head.predict(features, a.proposals, images.sizes)
        pairs += [
            pair for one, two in zip(predictions, a.predictions, strict=True) for pair in zip(one, two, strict=True)
        ]
        if a.detections.masks is not None:
            assert a.detections.valid.any()
            pairs.append((head.predict_masks(features, a.detections).masks, a.detections.masks))
    if a.anchors is not None:
        pairs += zip(b.anchors.logits, a.anchors.logits, strict=True)
        pairs += zip(b.anchors.deltas, a.anchors.deltas, strict=True)
    return [error(found, expected) for found, expected in pairs]


# Of the later families one of each; the rest differ in depth.
EACH = [name for name in ZOO if name.startswith("fast") or "tiny" in name or "v2" in name or "c4" in name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "resnet" in name else []) for name in EACH]
)
def test_every_stage_of_every_model_is_that_of_the_trained_one(name: str, way: str) -> None:
    model = lively(name, **fields_of(name, head_channels=64, rpn_keep_test=20))
    assert max(errors(prepare(model), model, batch((96, 120), (80, 128)))) < 1e-4


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_every_normalisation_is_folded_or_kept(norm: str, way: str) -> None:
    model = lively("faster_rcnn_tiny_fpn", norm=norm)
    fast = prepare(model)
    assert max(errors(fast, model, batch((96, 120)))) < 1e-4
    kept = sum(isinstance(module, nn.GroupNorm) for module in fast.model.modules())
    assert kept == (sum(isinstance(module, nn.GroupNorm) for module in model.modules()))
    assert not any(hasattr(module, "running_var") for module in fast.model.modules())


@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "faster_rcnn_mobilenet_v3_large_fpn", "faster_rcnn_zf"])
def test_bf16_is_near_float32_and_boxes_are_float32(name: str, way: str) -> None:
    model = lively(name, head_channels=64, rpn_keep_test=20)
    fast = prepare(model, torch.bfloat16)
    assert max(errors(fast, model, batch((96, 120)))) < 0.05
    stages = fast.stages(batch((96, 120)))
    assert {m.dtype for m in stages.maps} == {torch.bfloat16}
    assert (
        stages.detections.boxes.dtype == stages.detections.scores.dtype == stages.proposals.boxes.dtype == torch.float32
    )


def test_any_shape_after_any_other_runs_on_the_same_weights(way: str) -> None:
    model = lively("faster_rcnn_tiny_fpn")
    fast = prepare(model)
    for sizes in ([(1, 1)], [(64, 64)], [(10, 700)], [(333, 35), (17, 90)], [(1, 1)]):
        assert max(errors(fast, model, batch(*sizes))) < 1e-4


def test_the_trained_model_is_untouched_and_trains_on() -> None:
    model = lively("faster_rcnn_tiny_fpn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare(model, torch.bfloat16).stages(batch((64, 64)))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    with torch.inference_mode(False):
        targets = stack_targets([torch.tensor([[4.0, 4, 40, 40]])], [torch.tensor([1])], seeds=[0])
        sum(model.train()(batch((64, 64)), targets).values()).backward()  # type: ignore[union-attr]
        assert model.rpn.objectness.weight.grad is not None


def test_weights_are_kept_once(way: str) -> None:
    fast = prepare(lively("faster_rcnn_tiny_fpn"))
    layers = [m.conv for m in fast.model.modules() if isinstance(m, FusedConv)]
    layers += [m.linear for m in fast.model.modules() if isinstance(m, FusedLinear)]
    assert len(layers) > 20
    assert all(isinstance(one, ChosenConv | ChosenLinear) for one in layers)
    kept = (PackedConv, PackedPointwise, PackedLinear) if way == "packed" else (PlainConv, PlainLinear)
    assert all(isinstance(one.forms.first, kept) for one in layers)
    assert all(len(one.forms._kept) == 1 for one in layers)


def test_without_a_choice_every_layer_has_its_first_form(way: str) -> None:
    fast = prepare(lively("faster_rcnn_tiny_fpn"), forms="first")
    layers = [m.conv for m in fast.model.modules() if isinstance(m, FusedConv)]
    layers += [m.linear for m in fast.model.modules() if isinstance(m, FusedLinear)]
    kept = (PackedConv, PackedPointwise, PackedLinear) if way == "packed" else (PlainConv, PlainLinear)
    assert all(isinstance(one, kept) for one in layers)


def test_autocast_around_a_prediction_changes_nothing(way: str) -> None:
    fast, images = prepare(lively("faster_rcnn_tiny_fpn")), batch((96, 128))
    expected = fast.stages(images)
    with torch.autocast("cpu", torch.bfloat16):
        stages = fast.stages(images)
        fresh = prepare(lively("faster_rcnn_tiny_fpn")).stages(images)
    assert torch.equal(stages.maps[0], expected.maps[0])
    torch.testing.assert_close(fresh.maps[0], expected.maps[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode(False)
def test_a_detector_prepares_anew_when_its_weights_change() -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu")
    first = detector.prepared
    assert detector.prepared is first
    with torch.no_grad():
        detector.model.head.classes.bias.add_(1)
    assert detector.prepared is not first
    image = (torch.rand(64, 64, 3) * 255).to(torch.uint8).numpy()
    with torch.inference_mode():
        expected = detector.model.stages(make_batch([image], detector.model.config)).predictions[-1].logits
    torch.testing.assert_close(detector.trace(image).stages.predictions[-1].logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "relu", "hardswish"])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_convolution_adds_and_activates(
    way: str, activation: Activation, groups: int, kernel: int, dtype: torch.dtype
) -> None:
    weight, bias = torch.randn(8, 8 // groups, kernel, kernel), torch.randn(8)
    window = Window(stride=(2, 2), padding=(kernel // 2, kernel // 2), groups=groups)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    add = torch.randn(2, 8, 5, 4).contiguous(memory_format=torch.channels_last)
    conv = FusedConv(weight.to(dtype), bias.to(dtype), window)
    y = nn.functional.conv2d(x, weight, bias, 2, kernel // 2, 1, groups)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.1}
    torch.testing.assert_close(conv(x.to(dtype), activation).float(), ACTIVATIONS[activation](y), **tolerance)
    found = conv(x.to(dtype), activation, add.to(dtype, copy=True))
    torch.testing.assert_close(found.float(), ACTIVATIONS[activation](y + add), **tolerance)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_large_results_in_kept_memory_are_the_same(
    kernel: int, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked off in parts, or as a sum with zeros."""
    if not packed.serves("cpu", torch.float32):
        pytest.skip("this torch has no fused primitives here")
    weight, bias, window = torch.randn(9, 8, kernel, kernel), torch.randn(9), Window((2, 1), (kernel // 2, kernel // 2))
    x = torch.randn(2, 8, 33, 20).contiguous(memory_format=torch.channels_last)
    expected = PlainConv.of(weight, bias, window)(x, activation)
    monkeypatch.setattr(packed, "_LARGE", 0)
    monkeypatch.setattr(packed, "_BYTES", 1000)
    torch.testing.assert_close(FusedConv(weight, bias, window)(x, activation), expected, rtol=1e-4, atol=1e-5)
    add = torch.randn_like(expected)
    found = FusedConv(weight, bias, window)(x, activation, add.clone(memory_format=torch.preserve_format))
    torch.testing.assert_close(found, PlainConv.of(weight, bias, window)(x, activation, add), rtol=1e-4, atol=1e-5)


def test_moving_or_hooking_the_prepared_model_does_not_touch_the_trained_one() -> None:
    model = lively("faster_rcnn_tiny_fpn")
    fast = prepare(model)
    fast.model.to(torch.float64)
    fast.model.rpn.register_forward_hook(lambda *_: pytest.fail("hooked"))
    assert model.normalize.pixel_mean.dtype == model.rpn.anchors.get_buffer("cell0").dtype == torch.float32
    model.stages(batch((64, 64)))


def test_what_a_trace_is_used_for_changes_no_later_prediction() -> None:
    model = prepare(lively("faster_rcnn_tiny_fpn"))
    images = batch((64, 96))
    expected = model.stages(images)
    boxes = expected.detections.boxes.clone()
    for level in expected.anchors.anchors:
        level.mul_(3)
    expected.anchors.anchors.pop()
    assert torch.equal(model.stages(images).detections.boxes, boxes)


@torch.inference_mode(False)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda detector: pickle.loads(pickle.dumps(detector))])
def test_a_detector_that_has_predicted_can_be_copied_and_sent(copied: Callable[[Detector], Detector]) -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", score_threshold=0.0)
    image = (torch.rand(64, 64, 3) * 255).to(torch.uint8).numpy()
    expected = detector.predict(image, conf=0)
    found = copied(detector).predict(image, conf=0)
    assert (found.boxes == expected.boxes).all()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_onednn_is_not_used_where_it_is_switched_off_and_no_trial_is_spoilt_by_autocast() -> None:
    if not packed.serves("cpu", torch.float32):
        pytest.skip("this torch has no fused primitives here")
    packed._passes.cache_clear()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not packed.serves("cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed.serves("cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_summand_may_lie_in_memory_as_it_will(way: str, dtype: torch.dtype, kernel: int) -> None:
    weight, window = torch.randn(8, 8, kernel, kernel), Window(padding=(kernel // 2, kernel // 2))
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    add = torch.randn(2, 16, 9, 7)[:, ::2]
    expected = (nn.functional.conv2d(x, weight, padding=kernel // 2) + add).relu()
    found = FusedConv(weight.to(dtype), None, window)(x.to(dtype), "relu", add.to(dtype))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.2}
    torch.testing.assert_close(found.float(), expected, **tolerance)


@pytest.mark.parametrize("kernel", [1, 3])
def test_no_images_are_no_results(way: str, kernel: int) -> None:
    conv = FusedConv(torch.randn(130, 130, kernel, kernel), None, Window(padding=(kernel // 2, kernel // 2)))
    x = torch.randn(0, 130, 70, 70).contiguous(memory_format=torch.channels_last)
    assert conv(x).shape == conv(x, "relu", x.clone()).shape == (0, 130, 70, 70)


def test_truncated_layers_are_the_nearest_of_their_rank() -> None:
    """Fast R-CNN, section 3.1; no two such layers come nearer (Eckart and Young 1936)."""
    layer = nn.Linear(30, 20)
    first, second = truncated(layer, 7)
    found = second.weight @ first.weight
    singular = torch.linalg.svdvals(layer.weight)
    torch.testing.assert_close((layer.weight - found).norm(), singular[7:].norm())
    assert first.weight.numel() + second.weight.numel() == 7 * (30 + 20)
    whole = truncated(layer, 20)
    x = torch.rand(5, 30)
    torch.testing.assert_close(whole[1](whole[0](x)), layer(x))


def test_ranks_of_the_head_take_effect_at_test_alone() -> None:
    model = lively("fast_rcnn_tiny", head_channels=64, rpn_keep_test=20)
    plain = errors(prepare(model), model, batch((96, 120)))
    cut = lively("fast_rcnn_tiny", head_channels=64, rpn_keep_test=20, head_ranks=(16, 8))
    assert cut.state_dict().keys() == model.state_dict().keys()
    cut.load_state_dict(model.state_dict())
    assert max(plain) < 1e-4 < max(errors(prepare(cut), model, batch((96, 120)))) < 1
    full = lively("fast_rcnn_tiny", head_channels=64, rpn_keep_test=20, head_ranks=(64, 64))
    full.load_state_dict(model.state_dict())
    assert max(errors(prepare(full), model, batch((96, 120)))) < 1e-4
