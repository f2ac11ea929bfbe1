"""The optimizer over what may learn."""

from collections.abc import Collection
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from twostage.errors import UsageError
from twostage.models.backbones.fpn import Body
from twostage.models.heads.box import BoxHead
from twostage.models.two_stage import TwoStage
from twostage.training.recipe import Recipe


def freeze(model: TwoStage, stages: int) -> None:
    """Fix the first `stages` parts of the backbone, as Fast R-CNN does with the layers before conv3_1 (section 4.5).

    Raises UsageError where the backbone has fewer.
    """
    if stages > len(_parts(model)):
        raise UsageError(f"freeze is {stages}; the backbone has {len(_parts(model))} stages")
    for part in _parts(model)[:stages]:
        for module in part:
            module.requires_grad_(False)


def only(model: TwoStage, parts: Collection[str]) -> None:
    """Let these of backbone, rpn and head learn, and fix the others; losses of a fixed rpn or head do not count.

    "boxes" is the head's last layer for boxes: alone it learns as in stage-wise training (Fast R-CNN, section 5.1).

    Raises UsageError where nothing is left that learns.
    """
    model.learns = tuple(parts)
    for name in ("backbone", "rpn", "head"):
        part = getattr(model, name)
        if part is not None and name not in parts:
            part.requires_grad_(False)
    if "boxes" in parts:
        if not isinstance(model.head, BoxHead):
            raise UsageError("learn is boxes, a layer of Fast and Faster R-CNN's heads; this model has more than one")
        model.head.deltas.requires_grad_(True)
    if not model.second.has_losses and "rpn" not in parts:
        raise UsageError(f"learn is {', '.join(parts)}; all that this model tells is told by its rpn: name that too")
    if model.rpn is None and not {"head", "boxes"} & set(parts):
        raise UsageError(f"learn is {', '.join(parts)}; this model has no network that proposes: its head must learn")


def whole_stages(model: TwoStage, loaded: Collection[str]) -> int:
    """How many of the backbone's first parts are made of loaded tensors alone."""
    name_of = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    for count, part in enumerate(_parts(model)):
        tensors = [t for module in part for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        if not all(name_of[id(tensor)] in loaded for tensor in tensors):
            return count
    return len(_parts(model))


def train_mode(model: TwoStage, stages: int) -> None:
    """Training mode, but for the statistics of frozen stages and of parts that do not learn."""
    model.train()
    frozen = [module for part in _parts(model)[:stages] for module in part]
    frozen += [model.get_submodule(name) for name in ("backbone", "rpn", "head") if _rests(model, name)]
    for module in frozen:
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.eval()


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """SGD or AdamW; biases and normalisation are not decayed."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=_fused(learning))
    return AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=_fused(learning))


def _rests(model: TwoStage, name: str) -> bool:
    return getattr(model, name) is not None and name not in model.learns


def _parts(model: TwoStage) -> list[list[nn.Module]]:
    return cast(Body, model.backbone).parts()


def _fused(parameters: list[nn.Parameter]) -> bool:
    """One pass over each tensor instead of several, where the device has it."""
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in parameters)
