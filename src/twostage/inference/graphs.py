"""Forward passes on a GPU, recorded once for each input shape and replayed: one launch instead of hundreds.

A CUDA graph repeats the kernels of one run on the same memory. That suits the forward pass, for its shapes follow from
the configuration and the host never looks at the data. A shape is recorded when it comes for the second time, and few
are kept: where every image has another shape, nothing is recorded.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, TypeVar

import torch

from twostage.data.batch import Batch
from twostage.models.fields import Fields
from twostage.models.two_stage import Stages, TwoStage

log = logging.getLogger("twostage.inference")

Record = Callable[[Callable[[], Stages]], tuple[Stages, Callable[[], None]]]
T = TypeVar("T")

_KEEP = 4  # recordings; all share one pool of memory
_REMEMBER = 64  # shapes that came once


class Recording(NamedTuple):
    """A forward pass on memory of its own: `replay` reads `inputs` and fills `stages`.

    What the kernels read besides must live as long: weights do with the model, anchors by being among the stages.
    """

    inputs: Batch
    stages: Stages
    replay: Callable[[], None]


class Recordings:
    """Forward passes of one model, replayed where their input shape came before.

    Their results lie in memory that all recordings share: one thread at a time runs, and reads them before the next.
    Where recording fails, for want of memory or by an operation that no graph can hold, passes of that shape run as
    they would without. The model is given with each call, for it holds this object.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._kept: OrderedDict[object, Recording] = OrderedDict()
        self._came: OrderedDict[object, bool] = OrderedDict()  # whether the shape can be recorded
        self._alone = Lock()

    def __call__(self, model: TwoStage, batch: Batch, output: Fields, read: Callable[[Stages], T]) -> T:
        """What `read` makes of the stages of the forward pass."""
        given = None if batch.proposals is None else tuple(batch.proposals.scores.shape)
        key = (tuple(batch.images.shape), batch.images.dtype, given, output)
        with self._alone:
            recording = self._kept.get(key)
            if recording is None and self._came.get(key):
                recording = self._recorded(key, model, batch, output)
            if recording is None:
                self._came.setdefault(key, True)
                if len(self._came) > _REMEMBER:
                    self._came.popitem(last=False)
                return read(model.stages(batch, output))
            self._kept.move_to_end(key)
            recording.inputs.copy_(batch)
            recording.replay()
            return read(recording.stages)

    def _recorded(self, key: object, model: TwoStage, batch: Batch, output: Fields) -> Recording | None:
        if len(self._kept) >= _KEEP:
            self._kept.popitem(last=False)
        inputs = batch.clone()
        try:
            stages, replay = self.record(lambda: model.stages(inputs, output))
        except RuntimeError as error:  # torch's own of CUDA and of memory are such
            self._came[key] = False
            log.warning("A forward pass is not recorded as a CUDA graph: %s", str(error).splitlines()[0][:200])
            return None
        self._kept[key] = Recording(inputs, stages, replay)
        return self._kept[key]


def cuda_graphs(device: torch.device) -> Record:
    """A recorder for this GPU; its recordings share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(forward: Callable[[], Stages]) -> tuple[Stages, Callable[[], None]]:
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
