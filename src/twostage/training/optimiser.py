"""Which parameters are trained, and the optimizer over them."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from twostage.errors import UsageError
from twostage.models.backbones.backbone import Backbone
from twostage.models.build import Model
from twostage.models.heads.box import BoxHead
from twostage.models.one_stage import OneStage
from twostage.training.recipe import Recipe


def freeze(model: Model, stages: int) -> None:
    """Fix the first `stages` stages of the backbone, as Fast R-CNN does with the layers before conv3_1 (section 4.5).

    Raises UsageError where the backbone has fewer.
    """
    if stages > len(backbone_stages(model)):
        raise UsageError(f"freeze is {stages}; the number of stages of the backbone is {len(backbone_stages(model))}.")
    for stage in backbone_stages(model)[:stages]:
        for module in stage:
            module.requires_grad_(False)


def set_trainable(model: Model, parts: Collection[str]) -> None:
    """Train these of backbone, rpn and head, and fix the others; losses of a fixed rpn or head are left out.

    "boxes" is the head's last layer for boxes, which alone is trained as in stage-wise training (Fast R-CNN, section
    5.1). Raises UsageError where nothing is left to train.
    """
    if isinstance(model, OneStage):
        # `rpn` is the name that its head had in earlier versions.
        if not {"rpn", "head"} & set(parts):
            raise UsageError(f"learn is {', '.join(parts)}; this model's losses are those of its head: name it too")
        fixed = [model.backbone] if "backbone" not in parts else []
    else:
        named = {"backbone": model.backbone, "rpn": model.rpn, "head": model.head}
        fixed = [part for name, part in named.items() if part is not None and name not in parts]
    for part in fixed:
        part.requires_grad_(False)
    if "boxes" in parts:
        if not isinstance(model.head, BoxHead):
            raise UsageError("learn is boxes, a layer of Fast and Faster R-CNN's heads; this model has no such layer")
        model.head.deltas.requires_grad_(True)
    if not isinstance(model, OneStage) and model.rpn is None and not {"head", "boxes"} & set(parts):
        raise UsageError(f"learn is {', '.join(parts)}; this model has no RPN: its head must be trained")


def whole_stages(model: Model, loaded: Collection[str]) -> int:
    """How many of the backbone's first stages consist of loaded tensors alone, but for buffers that no file holds."""
    stages = stage_tensors(model)
    return next((count for count, names in enumerate(stages) if not names <= set(loaded)), len(stages))


def freezable_stages(model: Model, loaded: Collection[str]) -> int:
    """How many of the backbone's first stages a recipe may fix: those that were loaded whole, since random layers must
    be trained, and not the last, since a network of one stage would not be fine-tuned."""
    return min(whole_stages(model, loaded), len(backbone_stages(model)[:-1]))


def stage_tensors(model: Model) -> list[set[str]]:
    """The names of the tensors of each stage of the backbone that weights files hold."""
    name_of = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    floating = (
        (t for module in stage for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
        for stage in backbone_stages(model)
    )
    return [{name_of[id(t)] for t in tensors if id(t) in name_of} for tensors in floating]


def train_mode(model: Model, parts: Collection[str], stages: int) -> None:
    """Training mode, except for the statistics of frozen stages and of parts that are not trained."""
    model.train()
    frozen = [module for stage in backbone_stages(model)[:stages] for module in stage]
    trained = {*parts, "head"} if isinstance(model, OneStage) else set(parts)
    frozen += [
        module for name, module in model.named_children() if name in ("backbone", "rpn", "head") and name not in trained
    ]
    for module in frozen:
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.eval()


def build_optimizer(model: Model, recipe: Recipe) -> Optimizer:
    """SGD or AdamW; `rate` of a group is its factor of the learning rate.

    The weights of layers alone are decayed, not biases, normalisation, and a transformer's tokens and tables of
    positions (Liu et al. 2021, Swin; Li et al. 2022, ViTDet, in their code).
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    # Not only `weight`: weight_ih_l0 of an LSTM, parametrizations.weight.original1 of a normalised one.
    decayed = {id(p) for name, p in model.named_parameters() if p.ndim > 1 and "weight" in name}
    rates = _rates(model, recipe.layer_decay)
    groups: list[dict[str, Any]] = []
    for rate in sorted({rates.get(id(p), 1.0) for p in learning}, reverse=True):
        some = [p for p in learning if rates.get(id(p), 1.0) == rate]
        groups += [
            {"params": [p for p in some if id(p) in decayed], "weight_decay": recipe.weight_decay, "rate": rate},
            {"params": [p for p in some if id(p) not in decayed], "weight_decay": 0.0, "rate": rate},
        ]
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=can_fuse(learning))
    return AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=can_fuse(learning))


def _rates(model: Model, decay: float) -> dict[int, float]:
    """The factor of the learning rate of each parameter of the backbone's stages: lower, the nearer to the image.

    Layer-wise learning rate decay (Clark et al. 2020, "ELECTRA", section 3.1; Li et al. 2022, ViTDet, appendix A.2).
    """
    stages = backbone_stages(model) if decay != 1 else []
    return {
        id(parameter): decay ** (len(stages) - number)
        for number, stage in enumerate(stages)
        for module in stage
        for parameter in module.parameters()
    }


def backbone_stages(model: Model) -> list[list[nn.Module]]:
    return cast(Backbone, model.backbone).get_stages()


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether the device has an update in one pass over each tensor instead of several."""
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in parameters)
