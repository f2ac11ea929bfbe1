"""Forward passes on a GPU, recorded once for each input shape and replayed: one launch instead of hundreds.

A CUDA graph repeats the kernels of one run on the same memory. That suits the forward pass, for its shapes follow from
the configuration and the host never looks at the data. A shape is recorded when it comes for the second time, and few
are kept: where every image has another shape, nothing is recorded.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from twostage.data.batch import Batch
from twostage.models.fields import Fields
from twostage.models.two_stage import Stages

log = logging.getLogger("twostage.inference")

Forward = Callable[[Batch, Fields | None], Stages]
Record = Callable[[Callable[[], Stages]], tuple[Stages, Callable[[], None]]]

_KEEP = 4  # recordings; all share one pool of memory
_REMEMBER = 64  # shapes that came once


class Recording(NamedTuple):
    """A forward pass on memory of its own: `replay` reads `inputs` and fills `stages`."""

    inputs: Batch
    stages: Stages
    replay: Callable[[], None]


class Recordings:
    """A forward pass that is replayed where its input shape came before.

    The result lies in the recording's memory and holds until the next call. Where recording fails, for want of memory
    or by an operation that no graph can hold, passes run as they would without.
    """

    def __init__(self, forward: Forward, record: Record) -> None:
        self.forward = forward
        self.record = record
        self._kept: OrderedDict[object, Recording] = OrderedDict()
        self._came: OrderedDict[object, None] = OrderedDict()
        self._works = True

    def __call__(self, batch: Batch, output: Fields | None = None) -> Stages:
        """The stages of the forward pass."""
        key = (tuple(batch.images.shape), batch.images.dtype, output)
        if key not in self._kept and not (self._works and key in self._came):
            self._came[key] = None
            if len(self._came) > _REMEMBER:
                self._came.popitem(last=False)
            return self.forward(batch, output)
        recording = self._kept.get(key) or self._recorded(key, batch, output)
        if recording is None:
            return self.forward(batch, output)
        self._kept.move_to_end(key)
        recording.inputs.images.copy_(batch.images)
        recording.inputs.sizes.copy_(batch.sizes)
        recording.replay()
        return recording.stages

    def _recorded(self, key: object, batch: Batch, output: Fields | None) -> Recording | None:
        if len(self._kept) >= _KEEP:
            self._kept.popitem(last=False)
        inputs = Batch(batch.images.clone(memory_format=torch.preserve_format), batch.sizes.clone())
        try:
            stages, replay = self.record(lambda: self.forward(inputs, output))
        except RuntimeError as error:  # torch's own of CUDA and of memory are such
            self._works = False
            log.warning("Forward passes are not recorded as CUDA graphs: %s", str(error).splitlines()[0][:200])
            return None
        self._kept[key] = Recording(inputs, stages, replay)
        return self._kept[key]


def cuda_graphs(device: torch.device) -> Record:
    """Records on this GPU."""
    pool = torch.cuda.graph_pool_handle()

    def record(forward: Callable[[], Stages]) -> tuple[Stages, Callable[[], None]]:
        with torch.cuda.device(device):
            # Libraries choose their kernels and take their workspace in a run that is not recorded.
            beside = torch.cuda.Stream(device)
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                forward()
            torch.cuda.current_stream(device).wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                stages = forward()
        return stages, graph.replay

    return record
