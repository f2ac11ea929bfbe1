"""A prediction once more from its feature maps, with other settings.

Settings of the last step need no more than the regions' scores; those of the RPN need the head for other proposals.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from twostage.inference.exported import ExportedModel
from twostage.inference.predictor import to_arrays
from twostage.inference.prepare import PreparedModel
from twostage.inference.runner import Runner
from twostage.inspection.trace import Trace, finished
from twostage.models.build import Model
from twostage.models.config import DetectorConfig
from twostage.models.configure import configure
from twostage.models.heads.postprocess import PostprocessConfig, suppress
from twostage.ops.boxes import clip

TAIL = "postprocess."
"""The paths of settings that the last step alone reads begin with it."""


def with_value(config: PostprocessConfig, field: str, value: Any) -> PostprocessConfig:
    """The post-processing with another value, by its path. A threshold is that of soft-NMS too, as with `conf`."""
    name = field.removeprefix(TAIL)
    more: dict[str, Any] = {"soft_nms_min_score": None} if name == "score_threshold" else {}
    return replace(config, **{name: value, **more})


def can_rerun(runner: Runner, field: str) -> bool:
    """Whether a setting can be changed: in an exported file those of the last step alone."""
    return field.startswith(TAIL) or not isinstance(runner, ExportedModel)


@torch.inference_mode()
def rerun(runner: PreparedModel, trace: Trace, fields: Mapping[str, Any]) -> Trace:
    """The same prediction from the feature maps on, with other values of the configuration."""
    config = configure(trace.config, fields)
    model = with_config(runner.model, config)
    batch = trace.batch.to(runner.device)
    maps = [x.to(runner.device) for x in trace.stages.maps]
    with runner.computing():
        stages = model.stages_from(maps, batch, config.postprocess)
    return finished(replace(trace, config=config, model=model), runner, stages)


def with_config(model: Model, config: DetectorConfig) -> Model:
    """The model with other settings of its proposals; its layers are shared, and those of the heads stay."""
    changed = cast(Model, _own(model))
    changed.config = config  # type: ignore[assignment]
    if model.rpn is not None:
        rpn = _own(model.rpn)
        rpn.config, rpn.proposals = config.rpn, config.proposals  # type: ignore[union-attr]
        changed._modules["rpn"] = rpn
    elif hasattr(config, "retinanet"):
        head = _own(model.head)
        head.config = config.retinanet
        changed._modules["head"] = head
    return changed


def _own(module: nn.Module) -> Any:
    fast = copy.copy(module)
    fast._modules = dict(module._modules)
    return fast


@torch.inference_mode()
def detect_again(runner: Runner, trace: Trace, post: PostprocessConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The detections of a prediction under a post-processing and other settings, as arrays on the image's pixels.

    Everything behind the feature maps is computed again; of an exported file the last step alone, without masks.
    """
    for field in (name for name in fields if name.startswith(TAIL)):
        post = with_value(post, field, fields[field])
    others = {name: value for name, value in fields.items() if not name.startswith(TAIL)}
    batch, config = trace.batch, configure(trace.config, others)
    if not isinstance(runner, PreparedModel):
        found = suppress(trace.above_threshold(post), post)
        return to_arrays(found._replace(boxes=clip(found.boxes, batch.sizes)), batch, config)[0]
    there, model = batch.to(runner.device), with_config(runner.model, config)
    with runner.computing():
        stages = model.stages_from([x.to(runner.device) for x in trace.stages.maps], there, post)
    return to_arrays(runner.finish(stages, batch.sizes, post), batch, config)[0]
