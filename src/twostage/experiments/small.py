"""The one small network that every detector of the comparison starts from, in the form that each of them needs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from twostage.errors import DataError
from twostage.models.build import build
from twostage.models.config import DetectorConfig, StagewiseConfig
from twostage.models.configure import configure
from twostage.models.rcnn import WarpedRegions
from twostage.models.sppnet import ImageScales, scaled
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import named
from twostage.weights.file import load_tensors, save_tensors

OF_HEAD = ("head.", "classifier.")  # prefixes in a backbone's file


def rcnn_model(num_classes: int, windows: int = 500) -> TwoStage:
    """R-CNN with random weights, for so many proposals per image."""
    return _built(configure(named("rcnn_tiny"), {"rpn_keep_train": windows, "rpn_keep_test": windows}), num_classes)


def sppnet_model(rcnn: TwoStage, size: int, *, five: bool) -> TwoStage:
    """SPPnet with the weights of an R-CNN: the finest level of the pyramid has the bins of its pool5.

    The columns of fc6 for the coarser levels are 0, so that both networks start with the same function.
    """
    own = cast(StagewiseConfig, rcnn.config)
    config = replace(own, regions=scaled(size, five=five))
    model = _built(config, rcnn.num_classes)
    to, source = cast(SVMHead, model.head), cast(SVMHead, rcnn.head)
    cast(ImageScales, model.backbone).body.load_state_dict(cast(WarpedRegions, source.regions).backbone.state_dict())
    with torch.no_grad():
        fc6, theirs = to.body.fc6, source.body.fc6
        fc6.weight.zero_()
        fc6.weight[:, : theirs.in_features] = theirs.weight
        fc6.bias.copy_(theirs.bias)
    to.body.fc7.load_state_dict(source.body.fc7.state_dict())
    to.classes.load_state_dict(source.classes.state_dict())
    return model


def _built(config: DetectorConfig, num_classes: int) -> TwoStage:
    return cast(TwoStage, build(config, num_classes)).to(memory_format=torch.channels_last)


def save_backbone(path: Path, model: TwoStage) -> None:
    """Write an R-CNN's network as `train --weights` takes it: the backbone's names bare, fc6 and fc7 as the head's."""
    state = {
        prefix + name: tensor
        for prefix, module in _parts(model).items()
        for name, tensor in module.state_dict().items()
    }
    save_tensors(path, state)


def load_backbone(path: Path, model: TwoStage) -> None:
    """Load such a file into an R-CNN; the classifier of other classes is left out.

    Raises DataError where the file has another network, MissingError where it does not exist.
    """
    _, state = load_tensors(path)
    for prefix, module in _parts(model).items():
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix or OF_HEAD) == bool(prefix)}
        if prefix == "classifier." and not _fits(own, module):
            continue
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise DataError(f"{path}: not the backbone of a lineage run ({str(error).splitlines()[0]}).") from None


def _parts(model: TwoStage) -> dict[str, nn.Module]:
    """The modules of the network and the prefixes of their names in the file."""
    head = cast(SVMHead, model.head)
    return {"": cast(WarpedRegions, head.regions).backbone, "head.body.": head.body, "classifier.": head.classes}


def _fits(state: Mapping[str, Tensor], layer: nn.Module) -> bool:
    return {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in layer.state_dict().items()}
