"""Forward passes on a GPU, recorded once for each input shape and replayed: one launch instead of hundreds.

A CUDA graph repeats the kernels of one run on the same memory. That suits the forward pass, for its shapes follow from
the configuration and the host never looks at the data. A shape is recorded when it comes for the second time, and few
are kept: where every image has another shape, nothing is recorded.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import torch

from twostage.data.batch import Batch
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.one_stage import OneStageStages
from twostage.models.two_stage import Stages

log = logging.getLogger("twostage.inference")

AnyStages = Stages | OneStageStages
Forward = Callable[[Batch, PostprocessConfig], Any]
Record = Callable[[Callable[[], AnyStages]], tuple[AnyStages, Callable[[], None]]]
T = TypeVar("T")

_KEEP = 4  # recordings; all share one pool of memory
_REMEMBER = 64  # shapes that came once


class Recording(NamedTuple):
    """A forward pass on memory of its own: `replay` reads `inputs` and fills `stages`.

    What the kernels read besides must live as long: weights do with the model, anchors by being among the stages.
    """

    inputs: Batch
    stages: AnyStages
    replay: Callable[[], None]


class Recordings:
    """Forward passes of one model, replayed where their input shape came before.

    Their results lie in memory that all recordings share: one thread at a time runs, and reads them before the next.
    Where recording fails, for want of memory or by an operation that no graph can hold, passes of that shape run as
    they would without.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._kept: OrderedDict[object, Recording] = OrderedDict()
        self._seen: OrderedDict[object, bool] = OrderedDict()  # whether the shape can be recorded
        self._lock = Lock()

    def __call__(self, forward: Forward, batch: Batch, config: PostprocessConfig, read: Callable[[AnyStages], T]) -> T:
        """The result of `read` for the stages of the forward pass of one model."""
        given = None if batch.proposals is None else tuple(batch.proposals.scores.shape)
        key = (tuple(batch.images.shape), batch.images.dtype, given, batch.originals is None, config)
        with self._lock:
            recording = self._kept.get(key)
            if recording is None and self._seen.get(key):
                recording = self._recorded(key, forward, batch, config)
            if recording is None:
                self._seen.setdefault(key, True)
                if len(self._seen) > _REMEMBER:
                    self._seen.popitem(last=False)
                return read(forward(batch, config))
            self._kept.move_to_end(key)
            recording.inputs.copy_(batch)
            recording.replay()
            return read(recording.stages)

    def _recorded(self, key: object, forward: Forward, batch: Batch, config: PostprocessConfig) -> Recording | None:
        if len(self._kept) >= _KEEP:
            self._kept.popitem(last=False)
        inputs = batch.clone()
        try:
            stages, replay = self.record(lambda: forward(inputs, config))
        except RuntimeError as error:  # torch's own of CUDA and of memory are such
            self._seen[key] = False
            log.warning("A forward pass is not recorded as a CUDA graph: %s", str(error).splitlines()[0][:200])
            return None
        self._kept[key] = Recording(inputs, stages, replay)
        return self._kept[key]


def cuda_graphs(device: torch.device) -> Record:
    """A recorder for this GPU; its recordings share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(forward: Callable[[], AnyStages]) -> tuple[AnyStages, Callable[[], None]]:
        """Run once, record once: the stages of the recording, and what replays it."""
        with torch.cuda.device(device):
            # Libraries choose their kernels and take their workspace in a run that is not recorded.
            beside = torch.cuda.Stream(device)
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                forward()
            torch.cuda.current_stream(device).wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                stages = forward()
        return stages, graph.replay

    return record
