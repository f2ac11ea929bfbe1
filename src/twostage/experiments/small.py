"""The one small network that every detector of the comparison begins with, in the form that each needs."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from twostage.atomic import write_bytes
from twostage.errors import DataError
from twostage.models.backbones.norm import norm_layer
from twostage.models.stagewise.detector import Stagewise
from twostage.models.stagewise.nets import PyramidNet, WindowNet
from twostage.models.zoo.defaults import TINY_SINGLE
from twostage.models.zoo.parts import tiny_single
from twostage.weights.file import load_tensors

WINDOW = 96  # R-CNN's input: six cells of stride 16, as AlexNet's 227 are six at pool5
CONTEXT = 7  # 16 pixels of 227, as a share of it
SIDE = 6
PYRAMID = (6, 3, 2, 1)
SCALES = (480, 576, 688, 864, 1200)  # SPPnet's five (section 4.1); its one is 688
CHANNELS = 128
KEY = "twostage-lineage"


def window_net(num_classes: int) -> WindowNet:
    """R-CNN's network around the small backbone, with random weights."""
    backbone = tiny_single(norm_layer("batch", TINY_SINGLE.norm_eps))
    return WindowNet(
        backbone,
        CHANNELS,
        num_classes,
        size=WINDOW,
        context=CONTEXT,
        side=SIDE,
        width=TINY_SINGLE.head_channels,
        dropout=TINY_SINGLE.dropout,
    )


def pyramid_net(begun: WindowNet, num_classes: int, size: int, *, five: bool) -> PyramidNet:
    """SPPnet's network with the weights of R-CNN's: the pyramid's finest level has the bins of its pool5.

    fc6's columns of the coarser levels begin at 0, so that at first it says what the other says.
    """
    sizes = [round(size * scale / 688) for scale in SCALES] if five else [size]
    net = PyramidNet(
        copy.deepcopy(begun.backbone),
        CHANNELS,
        num_classes,
        sizes=sizes,
        region=224 * size / 688,
        stride=16,
        pyramid=PYRAMID,
        width=begun.body.fc7.out_features,
        dropout=begun.body.dropout,
    )
    with torch.no_grad():
        own, theirs = net.body.fc6.weight, begun.body.fc6.weight
        own.zero_()
        own[:, : theirs.shape[1]] = theirs
        net.body.fc6.bias.copy_(begun.body.fc6.bias)
    net.body.fc7.load_state_dict(begun.body.fc7.state_dict())
    net.classes.load_state_dict(begun.classes.state_dict())
    return net


def stagewise(net: nn.Module, num_classes: int) -> Stagewise:
    """The detector around a network."""
    model = Stagewise(net, num_classes, mean=TINY_SINGLE.mean, std=TINY_SINGLE.std)
    return model.to(next(net.parameters()).device).to(memory_format=torch.channels_last)


def save_stagewise(path: Path, model: Stagewise, names: Sequence[str]) -> None:
    """Write an R-CNN or SPPnet around the small backbone, with its classes."""
    sizes = model.net.sizes if isinstance(model.net, PyramidNet) else None
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(state, metadata={KEY: json.dumps({"names": list(names), "sizes": sizes})}))


def load_stagewise(path: Path) -> tuple[Stagewise, tuple[str, ...]]:
    """The detector of such a file, and its classes: `detector(image, boxes)` finds objects among proposals.

    Raises MissingError where there is none, DataError where it is none.
    """
    metadata, state = load_tensors(path)
    try:
        told = json.loads(metadata[KEY])
        names, sizes = tuple(map(str, told["names"])), told["sizes"]
        net: nn.Module = window_net(len(names))
        if sizes is not None:
            size = sizes[SCALES.index(688)] if len(sizes) > 1 else sizes[0]
            net = pyramid_net(window_net(len(names)), len(names), size, five=len(sizes) > 1)
        model = stagewise(net, len(names))
        model.load_state_dict(state)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise DataError(f"{path}: not an R-CNN or SPPnet of a lineage run ({str(error).splitlines()[0]}).") from None
    return model.eval(), names


def save_backbone(path: Path, net: WindowNet) -> None:
    """Write the network as `train --weights` takes it: the backbone's names bare, fc6 and fc7 the head's."""
    state = dict(net.backbone.state_dict())
    state |= {f"head.body.{name}": tensor for name, tensor in net.body.state_dict().items()}
    state |= {f"classifier.{name}": tensor for name, tensor in net.classes.state_dict().items()}
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in state.items()}))


def load_backbone(path: Path, net: WindowNet) -> None:
    """Fill a network from such a file; the classifier stays as it is where it tells other classes apart.

    Raises DataError where the file is of another network, MissingError where there is none.
    """
    _, state = load_tensors(path)
    backbone = {k: v for k, v in state.items() if not k.startswith(("head.", "classifier."))}
    body = {k.removeprefix("head.body."): v for k, v in state.items() if k.startswith("head.body.")}
    classes = {k.removeprefix("classifier."): v for k, v in state.items() if k.startswith("classifier.")}
    try:
        net.backbone.load_state_dict(backbone)
        net.body.load_state_dict(body)
    except RuntimeError as error:
        raise DataError(f"{path}: not the backbone of a lineage run ({str(error).splitlines()[0]}).") from None
    if _fits(classes, net.classes):
        net.classes.load_state_dict(classes)


def _fits(state: Mapping[str, Tensor], layer: nn.Linear) -> bool:
    return {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in layer.state_dict().items()}
