"""torchvision's detectors with random weights that behave like trained ones.

Plain random weights give the same output everywhere and prove nothing. Here BatchNorm takes its statistics from real
photos, and every output of neck, proposal network and head is standardised over them and given a spread.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def calibrated(build: Callable[..., nn.Module], num_classes: int, photos: Sequence[Tensor], seed: int = 0) -> nn.Module:
    """A torchvision detector for `num_classes` (background not counted), calibrated on photos [3, h, w] in 0..1."""
    torch.manual_seed(seed)
    model = build(weights=None, weights_backbone=None, num_classes=num_classes + 1).eval()
    images = model.transform(list(photos))[0].tensors
    _take_statistics(model.backbone, images)
    for layer in _convolutions(model.backbone.fpn):
        _spread(layer, 1.0, lambda: model.backbone(images))
    _spread(model.rpn.head.cls_logits, 3.0, lambda: model(list(photos)), shift=-2.0)
    _spread(model.rpn.head.bbox_pred, 0.3, lambda: model(list(photos)))
    _take_statistics(model.roi_heads.box_head, None, lambda: model(list(photos)))
    _spread(model.roi_heads.box_predictor.cls_score, 3.0, lambda: model(list(photos)))
    _spread(model.roi_heads.box_predictor.bbox_pred, 1.0, lambda: model(list(photos)))
    return model


def _take_statistics(module: nn.Module, images: Tensor | None, forward: Callable[[], object] | None = None) -> None:
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over what it sees
        norm.reset_running_stats()
        norm.train()
    forward() if forward else module(images)
    for norm in norms:
        norm.eval()


def _convolutions(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]


def _spread(layer: nn.Module, std: float, forward: Callable[[], object], shift: float = 0.0) -> None:
    """Scale and shift a layer so that each of its outputs has this standard deviation and mean over the photos."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    forward()
    hook.remove()
    channels = layer.weight.shape[0]
    flat = torch.cat([y.movedim(1, -1).reshape(-1, channels) for y in seen])
    scale = std / flat.std(dim=0).clamp(min=1e-6)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.sub_(flat.mean(dim=0)).mul_(scale).add_(shift)
