"""What is timed is the prediction itself, every stage of it, each in its order."""

import io
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from twostage import Detector
from twostage.inference import timing
from twostage.inference.peer import PEERS, build_peer, predict_peer
from twostage.inference.predictor import predict_arrays
from twostage.inference.timing import STAGES, Times, interleaved, peak_memory, stage_times, take_turns, times_of
from twostage.models.heads.mask import MaskHead
from twostage.models.zoo import ZOO


@pytest.fixture(scope="module")
def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_stage_has_its_time_and_the_model_is_as_before(picture: bytes) -> None:
    model = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", size=64, max_size=96).prepared
    times = stage_times(model, [picture], repeats=2, warmup=0)
    assert tuple(times) == STAGES
    assert all(0 < taken.minimum <= taken.median for taken in times.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_a_backbone_without_a_pyramid_has_no_neck(picture: bytes) -> None:
    small = {"size": 64, "max_size": 96, "head_channels": 8}
    model = Detector.build("faster_rcnn_zf", ["a"], device="cpu", **small).prepared
    assert set(STAGES) - set(stage_times(model, [picture], repeats=1, warmup=0)) == {"neck"}


@pytest.mark.slow
def test_a_slow_stage_is_seen_where_it_is(picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", size=64, max_size=96).prepared
    propose = model.model.rpn.propose

    def slowly(*args: object, **options: object) -> object:
        time.sleep(0.5)
        return propose(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model.model.rpn, "propose", slowly)
    times = stage_times(model, [picture], repeats=1)
    assert max(times, key=lambda stage: times[stage].median) == "proposals"
    assert times["proposals"].median > 500


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn_tiny_fpn", "cascade_mask_rcnn_tiny_fpn", "hybrid_task_cascade_tiny_fpn"])
def test_slow_masks_are_heads(picture: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"size": 64, "max_size": 96, "score_threshold": 0.0}
    fields |= {"semantic_classes": 4} if name.startswith("hybrid") else {}
    model = Detector.build(name, ["a"], device="cpu", **fields).prepared
    head = next(module for module in model.model.head.modules() if isinstance(module, MaskHead))
    forward = head.up.forward

    def slowly(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.4)
        return forward(x)

    monkeypatch.setattr(head.up, "forward", slowly)
    times = stage_times(model, [picture], repeats=1)
    assert tuple(times) == STAGES
    assert max(times, key=lambda stage: times[stage].median) == "heads"


def test_cases_take_turns() -> None:
    calls: list[str] = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warmup=1)
    assert calls == ["a", "b"] * 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still: `clock.now`, in seconds."""
    fake = SimpleNamespace(now=0.0)
    fake.perf_counter = lambda: fake.now
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_turns_end_before_a_call_that_would_take_too_long(clock: SimpleNamespace) -> None:
    def takes(seconds: float) -> Callable[[], None]:
        return lambda: vars(clock).update(now=clock.now + seconds)

    samples: dict[str, list[float]] = {"a": [2000.0]}
    cases = {"a": takes(2), "b": takes(5)}
    for _ in take_turns(cases, samples, calls=4, until=17):
        pass
    assert samples == {"a": [2000, 2000, 2000], "b": [5000, 5000]}, "b 5, a 7, b 12, a 14; the next b would end at 19"
    for _ in take_turns({"c": takes(9)}, samples, calls=4, until=17):
        pass
    assert samples["c"] == [9000], "one call in any event"


def test_times_leave_out_warm_up_calls_unless_there_are_too_few() -> None:
    times = times_of({"many": [9, 9, 1, 2, 3], "few": [9, 8], "one": [9], "none": []})
    assert times == {"many": Times(2, 1, 3), "few": Times(8, 8, 1), "one": Times(9, 9, 1)}


def test_peak_memory_is_that_of_the_call() -> None:
    cpu = torch.device("cpu")
    before = peak_memory(cpu, lambda: None)
    if before is None:
        pytest.skip("this system does not report it")
    with_more = peak_memory(cpu, lambda: np.ones(1 << 28, dtype=np.uint8).sum())
    after = peak_memory(cpu, lambda: None)
    assert with_more is not None
    assert after is not None
    assert with_more > before + (200 << 20)
    assert after < with_more - (200 << 20)


def test_every_peer_has_a_model_of_ours_and_as_many_outputs(picture: bytes) -> None:
    assert set(PEERS) <= set(ZOO)
    image = np.array(Image.open(io.BytesIO(picture)))
    name = "faster_rcnn_mobilenet_v3_large_320_fpn"
    ours = Detector.build(name, ["a", "b"], device="cpu", size=64, max_size=96)
    theirs = build_peer(name, 2, ours.model.config.image, ours.device)
    assert sum(p.numel() for p in theirs.parameters()) == pytest.approx(
        sum(p.numel() for p in ours.model.parameters()), rel=0.01
    )
    (found,) = predict_peer(theirs, [image], "fp32")
    assert set(found) == {"boxes", "labels", "scores"}
    assert len(predict_arrays(ours.prepared, [image, image])) == 2
