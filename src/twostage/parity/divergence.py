"""The first place where two detectors of one architecture compute something else, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twostage.inference.predictor import make_batch
from twostage.models.build import Model
from twostage.models.two_stage import TwoStage
from twostage.parity.variants import Pixels

SAMPLE = 1 << 14  # values of each output that are compared
RELATIVE = 1e-3  # of the largest value: what rounding does not reach

_LAST = ("head.mask.", "head.flows.")  # of the boxes detected
Trace = dict[str, Tensor]


class Divergence(NamedTuple):
    """The stage, its name in the model, and the largest difference as a share of the largest value."""

    stage: str
    place: str
    difference: float


def first_divergence(expected: Model, found: Model, image: Pixels, relative: float = RELATIVE) -> Divergence | None:
    """Where two models first differ on an image (RGB), in the order of the computation; None where nowhere."""
    first, second = _trace(expected, image), _trace(found, image)
    difference = first_difference(first, second, relative)
    missing = next((name for name in first if name not in second), None)
    if difference is None and missing is not None:
        return Divergence(_stage(missing), f"{missing}, which the other side does not have", 1.0)
    return difference


def first_difference(expected: Trace, found: Trace, relative: float = RELATIVE) -> Divergence | None:
    """The first name in both whose values differ."""
    for name, values in expected.items():
        if name in found and (difference := _difference(values, found[name])) > relative:
            return Divergence(_stage(name), name, difference)
    return None


@torch.inference_mode()
def stages_of(model: Model, image: Pixels) -> Trace:
    """The stages of an image (RGB) as the references report theirs, each `in_order`."""
    batch = make_batch([image], model.config)
    stages, trace = model.stages(batch), {"image": in_order(model.normalize(batch))}
    anchors = stages.anchors
    kinds = {"maps": stages.maps, **({"objectness": anchors.logits, "deltas": anchors.deltas} if anchors else {})}
    trace |= {f"{kind}.level{k}": in_order(x) for kind, levels in kinds.items() for k, x in enumerate(levels)}
    if isinstance(model, TwoStage):
        trace["proposals.boxes"] = in_order(stages.proposals.boxes[stages.proposals.valid])
    return trace


def in_order(values: Tensor) -> Tensor:
    """Some of the values by size: the same whatever order channels, anchors or boxes have."""
    return _sample(values.detach().flatten().sort().values)


@torch.inference_mode()
def _trace(model: Model, image: Pixels) -> Trace:
    """Some values of everything that a model computes from an image, in that order."""
    batch = make_batch([image], model.config)
    trace = {"image.resized": _sample(batch.images), "image.normalised": _sample(model.normalize(batch))}
    outputs: Trace = {}
    with _hooked(model, outputs):
        stages = model.stages(batch)
    first = ("backbone.", "rpn.") if model.rpn is not None else ("backbone.", "head.")
    trace |= {name: value for name, value in outputs.items() if name.startswith(first)}
    anchors = stages.anchors
    if anchors is not None:
        kinds = {"anchors": anchors.anchors, "objectness": anchors.logits, "deltas": anchors.deltas}
        trace |= {f"{kind}.level{k}": _sample(x) for kind, levels in kinds.items() for k, x in enumerate(levels)}
    trace["proposals.boxes"] = _sample(stages.proposals.boxes)
    trace |= {name: value for name, value in outputs.items() if name not in trace and not name.startswith(_LAST)}
    found = stages.detections
    trace |= {"detections.boxes": _sample(found.boxes), "detections.scores": _sample(found.scores)}
    return trace | {name: value for name, value in outputs.items() if name.startswith(_LAST)}


@contextmanager
def _hooked(model: nn.Module, outputs: Trace) -> Iterator[None]:
    """Within it, every layer leaves a sample of its outputs, those of several calls one after the other."""

    def keep(name: str, output: Any) -> None:
        for tensor in output if isinstance(output, list | tuple) else [output]:
            if isinstance(tensor, Tensor):
                own = _sample(tensor)
                outputs[name] = torch.cat([outputs[name], own]) if name in outputs else own

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sample(values: Tensor) -> Tensor:
    """Values at equal steps, as a copy: later layers may write where this one did."""
    flat = values.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLE)].double().clone()


def _difference(a: Tensor, b: Tensor) -> float:
    if len(a) != len(b):
        return 1.0
    # A NaN on one side would compare as no difference, and one on both sides is the same.
    finite = a.isfinite() & b.isfinite()
    if not (finite | (a == b) | (a.isnan() & b.isnan())).all():
        return 1.0
    a, b = a[finite], b[finite]
    if not len(a):
        return 0.0
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1e-12))


_STAGES = {
    "image": "resizing or normalising the image",
    "backbone": "the feature maps",
    "maps": "the feature maps",
    "anchors": "the anchors",
    "rpn": "the RPN",
    "objectness": "the scores of the anchors",
    "deltas": "the deltas of the anchors",
    "proposals": "decoding and suppressing the proposals",
    "head": "the heads",
    "detections": "decoding and suppressing the detections",
}


def _stage(name: str) -> str:
    return _STAGES.get(name.partition(".")[0], name)
