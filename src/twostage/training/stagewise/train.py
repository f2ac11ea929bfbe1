"""R-CNN and SPPnet from a pretrained network to a detector, and the pretraining of that network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from twostage.data.dataset import Dataset
from twostage.data.proposals import ProposalSet
from twostage.data.randomness import generator
from twostage.models.rcnn import WarpedRegions
from twostage.models.regions.pooling import Maps, RegionFeatures
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.training.stagewise.fit import FitSettings, batch_of, fit_stages
from twostage.training.stagewise.regions import Cache, Regions, images_of, regions_of
from twostage.training.stagewise.tune import TuneSettings, tune


@dataclass(frozen=True)
class Bounds:
    """The number of images that SVMs and regressors are fitted to, drawn with `seed`, and of proposals per image."""

    images: int = 200
    windows: int = 300
    seed: int = 0

    def of(self, dataset: Dataset) -> list[int]:
        """The images, in order."""
        some = generator(self.seed, len(dataset)).permutation(len(dataset))[: self.images]
        return sorted(some.tolist())


def pretrain(model: TwoStage, dataset: Dataset, settings: TuneSettings) -> int:
    """Train R-CNN's network as a classifier of crops and background; returns the number of steps.

    The crops are the objects, moved and scaled a little, and windows of the objects' sizes anywhere.
    """
    of_images = crops(dataset, settings.seed)
    regions = [regions_of(dataset, i, of_images, len(of_images.boxes)) for i in range(len(dataset))]
    return tune_windows(model, images_of(dataset), regions, settings)


def train_stages(
    model: TwoStage,
    dataset: Dataset,
    proposals: ProposalSet,
    bounds: Bounds,
    tuning: TuneSettings,
    fitting: FitSettings,
) -> None:
    """R-CNN or SPPnet: fine-tune the network on regions of all images; fit SVMs and regressors to vectors of some."""
    images = images_of(dataset)
    regions = [regions_of(dataset, i, proposals, bounds.windows) for i in range(len(dataset))]
    if isinstance(cast(SVMHead, model.head).regions, WarpedRegions):
        tune_windows(model, images, regions, tuning)
    else:
        tune_pooled(model, images, regions, tuning)
    fit_some(model, dataset, images, regions, bounds, fitting)


def tune_pooled(model: TwoStage, images: Cache[Tensor], regions: Sequence[Regions], settings: TuneSettings) -> None:
    """SPPnet: train fc6, fc7 and the classifier alone, on regions pooled from fixed maps."""
    head = cast(SVMHead, model.head)
    model.eval()

    @torch.no_grad()
    def maps(key: int) -> Maps:
        """Of an image, or, where the key is odd, of its mirror image."""
        batch = batch_of(model, images[key // 2])
        return model.features(replace(batch, images=batch.images.flip(3)) if key % 2 else batch)

    cached = Cache(maps, lambda levels: sum(4 * x.numel() for x in levels))

    @torch.no_grad()
    def pooled(index: int, boxes: Tensor, mirrored: bool) -> Tensor:
        """Float[p c b 1]: the pyramids of regions of an image."""
        features = RegionFeatures(cached[2 * index + mirrored])
        width = features.maps[0].shape[3]
        if mirrored:
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        return head.regions(features, boxes.to(features.maps[0].device)[None])[0]

    head.body.train()
    learned = [*head.body.parameters(), *head.classes.parameters()]
    tune(_Classifier(head, nn.Identity()), learned, pooled, regions, replace(settings, negative=(0.1, 0.5)))


def fit_some(
    model: TwoStage,
    dataset: Dataset,
    images: Cache[Tensor],
    regions: Sequence[Regions],
    bounds: Bounds,
    fitting: FitSettings,
) -> None:
    """Fit a model's SVMs and regressors to some of the images of a data set."""
    chosen = bounds.of(dataset)
    some = Cache(lambda place: images[chosen[place]], Tensor.numel, limit=0)
    fit_stages(model.eval(), some, [regions[i] for i in chosen], dataset.names, fitting)


class _Classifier(nn.Module):
    """From windows, or from pooled regions, to K + 1 logits."""

    def __init__(self, head: SVMHead, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head = head
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.head.classes(self.head.body(self.pool(x)[None]))[0]


def tune_windows(model: TwoStage, images: Cache[Tensor], regions: Sequence[Regions], settings: TuneSettings) -> int:
    """R-CNN: train the whole network as a classifier of windows; returns the number of steps."""
    head = cast(SVMHead, model.head)
    warped = cast(WarpedRegions, head.regions)

    def windows(index: int, boxes: Tensor, mirrored: bool) -> Tensor:
        """Float[p 3 s s]: the windows of regions of an image."""
        (image,) = model.normalize(batch_of(model, images[index]))
        some = warped.windows(image, boxes.to(image.device))
        return some.flip(3) if mirrored else some

    model.train()
    learned = [*warped.parameters(), *head.body.parameters(), *head.classes.parameters()]
    return tune(_Classifier(head, warped.pool), learned, windows, regions, settings)


def crops(dataset: Dataset, seed: int, copies: int = 4, others: int = 40) -> ProposalSet:
    """Per image its objects moved and scaled by up to a sixth, and windows of the sizes of all objects anywhere."""
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]

    def of_image(index: int) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of an image, and scores of 0."""
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
