"""When a forward pass is recorded and replayed; on a GPU, that the recording gives the same."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from detectors import make_model

from twostage.data.batch import Batch, stack_images
from twostage.inference import graphs
from twostage.inference.graphs import Recordings, cuda_graphs
from twostage.inference.prepare import PreparedModel, prepare
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.two_stage import Stages, TwoStage


def batch(height: int, width: int, seed: int = 0, count: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return stack_images([torch.rand(3, height, width, generator=generator) for _ in range(count)])


class Recorder:
    """Stands for a GPU's: a replay runs the function again and writes its results over those of the recording."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, forward: Callable[[], Stages]) -> tuple[Stages, Callable[[], None]]:
        self.recorded += 1
        stages = forward()

        def replay() -> None:
            self.replayed += 1
            for old, new in zip(stages.detections[:-1], forward().detections[:-1], strict=True):
                old.copy_(new)

        return stages, replay


@pytest.fixture
def model() -> TwoStage:
    torch.manual_seed(0)
    return make_model("faster_rcnn_tiny_fpn", 3, score_threshold=0.0, rpn_keep_test=10, max_det=5).eval()


def run(
    passes: Recordings, model: TwoStage | PreparedModel, one: Batch, config: PostprocessConfig | None = None
) -> BatchDetections:
    return passes(
        model.stages, one, config or model.config.postprocess, lambda stages: stages.detections.each(torch.clone)
    )


@torch.inference_mode()
def test_a_shape_is_recorded_when_it_comes_again_and_replayed_from_then_on(model: TwoStage) -> None:
    recorder = Recorder()
    passes = Recordings(recorder)
    for turn in range(4):
        one = batch(64, 96, seed=turn)
        for got, expected in zip(run(passes, model, one)[:-1], model.stages(one).detections[:-1], strict=True):
            assert torch.equal(got, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


@torch.inference_mode()
def test_shapes_that_never_come_again_are_not_recorded(model: TwoStage) -> None:
    recorder = Recorder()
    passes = Recordings(recorder)
    for width in range(32, 320, 32):
        run(passes, model, batch(32, width))
    assert recorder.recorded == 0


@torch.inference_mode()
def test_few_recordings_are_kept_those_that_are_used(model: TwoStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_KEEP", 2)
    recorder = Recorder()
    passes = Recordings(recorder)
    for width in (32, 64, 32, 64, 96, 32, 96):  # the last makes room by letting 64 go
        run(passes, model, batch(32, width))
    assert recorder.recorded == 3
    run(passes, model, batch(32, 32))
    assert recorder.recorded == 3
    run(passes, model, batch(32, 64))
    assert recorder.recorded == 4


@torch.inference_mode()
def test_other_thresholds_are_another_recording(model: TwoStage) -> None:
    recorder = Recorder()
    passes = Recordings(recorder)
    config = model.config.postprocess
    for one in (config, replace(config, max_det=2)) * 2:
        assert run(passes, model, batch(32, 32), one).boxes.shape[1] == one.max_det
    assert recorder.recorded == 2


@torch.inference_mode()
def test_a_shape_that_cannot_be_recorded_runs_plainly_and_it_is_said_once(
    model: TwoStage, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()

    def fails_on_small_ones(forward: Callable[[], Stages]) -> tuple[Stages, Callable[[], None]]:
        if forward().maps[0].shape[3] < 10:
            raise torch.OutOfMemoryError("no room\nat all")
        return recorder(forward)

    passes = Recordings(fails_on_small_ones)
    with caplog.at_level(logging.WARNING, "twostage.inference"):
        for turn in range(4):
            for one in (batch(32, 32, seed=turn), batch(32, 96, seed=turn)):
                assert torch.equal(run(passes, model, one).boxes, model.stages(one).detections.boxes)
    assert [record.message for record in caplog.records] == ["A forward pass is not recorded as a CUDA graph: no room"]
    assert recorder.recorded == 1


def test_threads_read_their_own_results(model: TwoStage) -> None:
    passes = Recordings(Recorder())
    batches = [batch(32, 64, seed=seed) for seed in range(8)]
    with torch.inference_mode():
        expected = [model.stages(one).detections.boxes for one in batches]

    def many(seed: int) -> bool:
        with torch.inference_mode():
            return all(torch.equal(run(passes, model, batches[seed]).boxes, expected[seed]) for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(8)))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "faster_rcnn_resnet18_fpn", "faster_rcnn_resnet50_c4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_recording_finds_the_same_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fast = prepare(make_model(name, 3, rpn_keep_test=50).cuda().eval(), dtype)
    assert isinstance(fast._recordings, Recordings)
    for turn in range(4):
        one = batch(96, 128, seed=turn, count=2).to("cuda")
        expected = fast.stages(one).detections
        for got, want in zip(fast.detect(one, fast.config.postprocess)[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(got, want.cpu(), rtol=1e-3, atol=1e-3)
    assert len(fast._recordings._kept) == 1


@needs_gpu
@torch.inference_mode()
def test_a_replay_never_makes_the_host_wait() -> None:
    torch.manual_seed(0)
    fast = prepare(make_model("faster_rcnn_resnet18_fpn", 3).cuda().eval(), torch.bfloat16)
    one = batch(96, 128).to("cuda")
    expected = fast.stages(one).detections
    passes = Recordings(cuda_graphs(torch.device("cuda")))
    for _ in range(2):
        run(passes, fast, one)
    torch.cuda.set_sync_debug_mode("error")
    try:
        detections = run(passes, fast, one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, want in zip(detections, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
