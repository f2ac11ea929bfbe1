"""torchvision's detectors with random weights that behave like trained ones.

Plain random weights give nearly the same output everywhere: a comparison of two implementations then shows nothing but
rounding, blown up. Here every layer that carries information is standardised on real photos, one after the other:
BatchNorm takes its statistics from them, and each output channel of neck, proposal network and head is scaled and
shifted to a spread of its own.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from twostage.models.build import Model

OBJECTNESS = (3.0, -2.0)  # standard deviation and mean of the logits
RPN_DELTAS = (0.1, 0.0)
CLASSES = (2.0, 0.0)  # with 80 classes the best scores of an image lie between 0.1 and 0.9
BOX_DELTAS = (0.5, 0.0)  # a twentieth of a box's width, a tenth of its logarithm
MASKS = (2.0, 0.0)
RESIDUAL = 0.15
SIDE = 400  # photos are no larger than this while statistics are taken, so that many fit into memory


@torch.no_grad()
def calibrated(
    build: Callable[..., nn.Module], num_classes: int, photos: Sequence[Tensor], *, seed: int = 0, **settings: Any
) -> nn.Module:
    """A torchvision detector for `num_classes` (background not counted), calibrated on photos [3, h, w] in 0..1."""
    torch.manual_seed(seed)
    model = build(weights=None, weights_backbone=None, num_classes=num_classes + 1, **settings).eval()
    _calm(model.backbone.body)
    own, model.transform.min_size = model.transform.min_size, (min(SIDE, *model.transform.min_size),)
    images, _ = model.transform(list(photos))
    model.transform.min_size = own
    maps = _standardise(model.backbone.body, lambda: model.backbone.body(images.tensors))
    maps = _standardise(model.backbone.fpn, lambda: model.backbone.fpn(maps))

    head = model.rpn.head
    _standardise(head.conv, lambda: [head.conv(x) for x in maps.values()])
    for layer, spread in ((head.cls_logits, OBJECTNESS), (head.bbox_pred, RPN_DELTAS)):
        _spread(layer, lambda: head([*maps.values()]), *spread)
    proposals, _ = model.rpn(images, maps)

    heads = model.roi_heads
    regions = heads.box_roi_pool(maps, proposals, images.image_sizes)
    vectors = _standardise(heads.box_head, lambda: heads.box_head(regions))
    for layer, spread in ((heads.box_predictor.cls_score, CLASSES), (heads.box_predictor.bbox_pred, BOX_DELTAS)):
        _spread(layer, lambda: heads.box_predictor(vectors), *spread)
    if heads.mask_head is not None:
        some = [boxes[:50] for boxes in proposals]
        seen = _standardise(
            heads.mask_head, lambda: heads.mask_head(heads.mask_roi_pool(maps, some, images.image_sizes))
        )
        _standardise(heads.mask_predictor, lambda: heads.mask_predictor(seen))
        _spread(heads.mask_predictor.mask_fcn_logits, lambda: heads.mask_predictor(seen), *MASKS)
    return model


def in_float64(model: Model) -> Model:
    """A copy of one of our models in float64, with the pixel mean and deviation of its configuration."""
    double = copy.deepcopy(model).double()
    image, norm = model.config.image, double.normalize
    for buffer, values in ((norm.pixel_mean, image.mean), (norm.pixel_std, image.std)):
        buffer.copy_(torch.tensor(values, dtype=torch.float64)[:, None, None])
    return double


def _calm(body: nn.Module) -> None:
    """Let residual branches weigh less than what they are added to, as training does.

    With equal weights a random normalised network is chaotic: each layer enlarges any rounding by a fifth, and fifty
    layers by ten thousand, in torchvision's own arithmetic as in any other.
    """
    for module in body.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(RESIDUAL)
        if isinstance(module, InvertedResidual) and module.use_res_connect:
            module.block[-1][1].weight.fill_(RESIDUAL)


def _standardise(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """Statistics for every BatchNorm inside, mean 0 and deviation 1 for every layer with a bias; the new output."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over what it sees
        norm.reset_running_stats()
        norm.train()
    forward()
    for norm in norms:
        norm.eval()
    squeezing = {layer for m in module.modules() if type(m).__name__ == "SqueezeExcitation" for layer in m.modules()}
    for layer in module.modules():
        if (
            isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and layer.bias is not None
            and layer not in squeezing
        ):
            _spread(layer, forward)
    return forward()


def _spread(layer: nn.Module, forward: Callable[[], Any], std: float = 1.0, mean: float = 0.0) -> None:
    """Scale and shift a layer so that each of its outputs has this standard deviation and mean."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    forward()
    hook.remove()
    flat = torch.cat([y.movedim(1, -1).flatten(0, -2) for y in seen])
    scale = std / flat.std(dim=0).clamp(min=1e-6)
    outputs = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, *[1] * (layer.weight.ndim - 1))
    layer.weight.mul_(scale.view(outputs))
    layer.bias.sub_(flat.mean(dim=0)).mul_(scale).add_(mean)
