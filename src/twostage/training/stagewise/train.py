"""R-CNN and SPPnet from a pretrained network to a detector, and that network before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet
from twostage.data.randomness import generator
from twostage.models.stagewise.detector import Stagewise
from twostage.models.stagewise.nets import PyramidNet, WindowNet
from twostage.training.stagewise.fit import FitSettings, fit_stages
from twostage.training.stagewise.regions import Kept, Regions, pictures_of, regions_of
from twostage.training.stagewise.tune import TuneSettings, tune

AfterImage = Callable[[int, int], None]
Make = Callable[[nn.Module], Stagewise]


def silent(done: int, all: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Bounds:
    """How many proposals of an image are looked at, and how many images, drawn with `seed`, teach the SVMs."""

    images: int = 200
    windows: int = 300
    seed: int = 0

    def of(self, dataset: Dataset) -> list[int]:
        """The images, in order."""
        some = generator(self.seed, len(dataset)).permutation(len(dataset))[: self.images]
        return sorted(some.tolist())


def pretrain(net: WindowNet, make: Make, dataset: Dataset, settings: TuneSettings) -> int:
    """Let a network tell crops of the ground truth and background apart; the number of steps.

    Its windows are the objects, moved and scaled a little, and windows of the objects' sizes anywhere.
    """
    of_images = crops(dataset, settings.seed)
    regions = [regions_of(dataset, i, of_images, len(of_images.boxes)) for i in range(len(dataset))]
    return _tune_windows(net, make(net), pictures_of(dataset), regions, settings)


def train_rcnn(
    net: WindowNet,
    make: Make,
    dataset: Dataset,
    proposals: ProposalSet,
    bounds: Bounds,
    tuning: TuneSettings,
    fitting: FitSettings,
    after_image: AfterImage = silent,
) -> Stagewise:
    """R-CNN: the whole network is tuned on windows of all images; vectors of some teach SVMs and regressors."""
    model, pictures = make(net), pictures_of(dataset)
    regions = [regions_of(dataset, i, proposals, bounds.windows) for i in range(len(dataset))]
    _tune_windows(net, model, pictures, regions, tuning)
    fit_some(model, dataset, pictures, regions, bounds, fitting, after_image)
    return model


def train_sppnet(
    net: PyramidNet,
    make: Make,
    dataset: Dataset,
    proposals: ProposalSet,
    bounds: Bounds,
    tuning: TuneSettings,
    fitting: FitSettings,
    after_image: AfterImage = silent,
) -> Stagewise:
    """SPPnet: only fc6, fc7 and the classifier are tuned, on regions pooled from fixed maps; then as R-CNN."""
    model, pictures = make(net), pictures_of(dataset)
    regions = [regions_of(dataset, i, proposals, bounds.windows) for i in range(len(dataset))]
    net.eval()

    @torch.no_grad()
    def maps(key: int) -> list[Tensor]:
        """Of an image, or, where the key is odd, of its mirror image."""
        image = model.normalised(pictures[key // 2])
        return net.maps(image.flip(2) if key % 2 else image)

    kept = Kept(maps, lambda found: sum(4 * x.numel() for x in found))

    @torch.no_grad()
    def pooled(index: int, boxes: Tensor, mirrored: bool) -> Tensor:
        """Float[p d]: the pyramids of an image's regions."""
        height, width = pictures[index].shape[1:]
        if mirrored:
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        return net.pooled(kept[2 * index + mirrored], min(height, width), boxes)

    head = nn.Sequential(net.body, net.classes).train()
    tune(head, list(head.parameters()), pooled, regions, replace(tuning, negative=(0.1, 0.5)))
    fit_some(model, dataset, pictures, regions, bounds, fitting, after_image)
    return model


def fit_some(
    model: Stagewise,
    dataset: Dataset,
    pictures: Kept[Tensor],
    regions: Sequence[Regions],
    bounds: Bounds,
    fitting: FitSettings,
    after_image: AfterImage = silent,
) -> None:
    """Fill a model's SVMs and regressors from some of a data set's images."""
    images = bounds.of(dataset)
    some = Kept(lambda place: pictures[images[place]], lambda image: image.numel(), held=0)
    fit_stages(model.eval(), some, [regions[i] for i in images], dataset.names, fitting, after_image)


def _tune_windows(
    net: WindowNet, model: Stagewise, pictures: Kept[Tensor], regions: Sequence[Regions], settings: TuneSettings
) -> int:
    """Let a whole network tell windows apart."""

    def windows(index: int, boxes: Tensor, mirrored: bool) -> Tensor:
        """Float[p 3 s s]: the windows of an image's regions."""
        found = net.windows(model.normalised(pictures[index]), boxes)
        return found.flip(3) if mirrored else found

    return tune(net.train(), list(net.parameters()), windows, regions, settings)


def crops(dataset: Dataset, seed: int, copies: int = 4, others: int = 40) -> ProposalSet:
    """For each image its objects moved and scaled by up to a sixth, and windows of all objects' sizes anywhere."""
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]

    def of_image(index: int) -> tuple[np.ndarray, np.ndarray]:
        """An image's boxes; as scores they have none, zeros."""
        rng = generator(seed, 7, index)
        height, width = dataset.sizes[index].tolist()
        own = dataset.objects(index).boxes.repeat(copies, axis=0)
        size = (own[:, 2:] - own[:, :2]).repeat(2, axis=0).reshape(-1, 4)
        near = own + rng.uniform(-1 / 6, 1 / 6, own.shape) * size
        drawn = rng.integers(len(sides), size=others) if len(sides) else np.zeros(0, np.int64)
        side = np.minimum(sides[drawn], [width, height])
        corner = rng.random((len(side), 2)) * ([width, height] - side)
        boxes = np.concatenate([near, np.concatenate([corner, corner + side], axis=1)])
        boxes = np.clip(boxes, 0, [width, height, width, height])
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)]
        return boxes, np.zeros(len(boxes))

    return ProposalSet.of((of_image(i) for i in range(len(dataset))), "crops")
