"""Batches from a data set: read, augment, resize and stack, in this process or in worker processes.

A sample is a function of (seed, epoch, image), where images are repeated also of the step, and a batch of (seed, step):
neither the number of workers nor a resume changes them. One endless stream serves a whole training run, so worker
processes are started once.
"""

import logging
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.utils.data import DataLoader

from twostage.data.augment import Augment, Sample
from twostage.data.batch import Batch, Originals, Targets, stack_images, stack_proposals, stack_stuff, stack_targets
from twostage.data.copy_paste import paste
from twostage.data.coverage import SIDE, coverage
from twostage.data.dataset import Dataset
from twostage.data.order import Plan, evaluation_plans, training_plans
from twostage.data.proposals import ProposalSet
from twostage.data.randomness import generator, mix
from twostage.data.resize import Resize
from twostage.data.stuff import Stuff, coarse
from twostage.errors import DataError, TwostageError, UsageError

log = logging.getLogger("twostage.data")

PREFETCH = 2  # batches that each worker prepares in advance
SHARED_MEMORY = Path("/dev/shm")

T = TypeVar("T")


class Loaded(NamedTuple):
    """A batch, its targets, the indices of its images in the data set, and its step and epoch."""

    batch: Batch
    targets: Targets
    indices: Int[Tensor, " n"]
    step: int
    epoch: int


class PrecomputedProposals(NamedTuple):
    """Proposals of every image of a split, and how many per image a batch holds."""

    all: ProposalSet
    keep: int


def training_batches(
    dataset: Dataset,
    *,
    resize: Resize,
    augment: Augment | None,
    batch: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    divisor: int = 32,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
    proposals: PrecomputedProposals | None = None,
    masks: bool = False,
    stuff: Stuff | None = None,
    repeats: Float64[np.ndarray, " m"] | None = None,
    copy_paste: float = 0.0,
) -> Iterator[Loaded]:
    """Batches from step `start` on, without end; every `steps_per_epoch` of them contain every image.

    `batch` is the number of images of all `world` processes together; each gets its share. Crowds and difficult objects
    are left out of the targets, as in py-faster-rcnn. With `masks` the targets have masks, with `stuff` its maps.
    `repeats` is how often each image comes in an epoch on average (`rare_classes.repeat_factors`), `copy_paste` the
    chance that objects of another image are pasted into one, by their masks.
    Raises UsageError if `batch` cannot be divided among the processes, DataError for an image that can no longer be
    read, a data set without images, or one without masks if `masks`.
    """
    if batch < 1 or batch % world:
        raise UsageError(f"batch is {batch}; it must be a positive multiple of the {world} processes.")
    _require_data(dataset, masks=masks or copy_paste > 0)
    order = {"batch": batch, "seed": seed, "start": start, "rank": rank, "world": world}
    plans = training_plans(dataset.sizes, **order, repeats=repeats)
    reader = Reader(dataset, resize, augment, seed, divisor, proposals, masks, stuff, copy_paste, repeats is not None)
    return _stream(reader, plans, _worker_limit(workers, dataset, resize, batch // world, masks=masks), pin)


def evaluation_batches(
    dataset: Dataset,
    *,
    resize: Resize,
    batch: int,
    seed: int = 0,
    workers: int = 0,
    divisor: int = 32,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
    proposals: PrecomputedProposals | None = None,
    masks: bool = False,
    stuff: Stuff | None = None,
) -> Iterator[Loaded]:
    """Every image once, grouped by canvas; see `indices`. Of several processes each gets its share of the batches.

    The targets are those of training, for a validation loss. Raises DataError as `training_batches` does.
    """
    _require_data(dataset, masks=masks)
    plans = evaluation_plans(dataset.sizes, resize=resize, divisor=divisor, batch=batch, rank=rank, world=world)
    reader = Reader(dataset, resize, None, seed, divisor, proposals, masks, stuff)
    return _stream(reader, plans, _worker_limit(min(workers, len(plans)), dataset, resize, batch, masks=masks), pin)


@dataclass(frozen=True, eq=False)
class Reader:
    """Makes the batch of a plan; runs in worker processes."""

    dataset: Dataset
    resize: Resize
    augment: Augment | None
    seed: int
    divisor: int
    proposals: PrecomputedProposals | None = None
    masks: bool = False
    stuff: Stuff | None = None
    copy_paste: float = 0.0
    repeated: bool = False

    def __getitem__(self, plan: Plan) -> Loaded | DataError:
        """The batch, or the error why it cannot be made: an exception raised in a worker would lose its type."""
        try:
            # An image that comes more than once in an epoch is augmented anew.
            again = (plan.step,) if self.repeated else ()
            samples = [self.sample(int(i), plan.epoch, *again) for i in plan.indices]
        except DataError as error:
            return error
        originals = Originals.of([s.original or _shape(s.image) for s in samples], self.resize)
        batch = stack_images([s.image for s in samples], divisor=self.divisor, originals=originals)
        if self.proposals is not None:
            given = [s.proposals for s in samples if s.proposals is not None]
            batch = replace(batch, proposals=stack_proposals(given, self.proposals.keep))
        seeds = [mix(self.seed, int(self.dataset.image_ids[i])) for i in plan.indices]
        masks = [s.masks for s in samples if s.masks is not None] if self.masks else None
        targets = stack_targets([s.boxes for s in samples], [s.labels for s in samples], seeds, masks)
        if self.stuff is not None:
            maps = [s.stuff for s in samples if s.stuff is not None]
            targets = replace(targets, stuff=stack_stuff(maps, batch.canvas))
        return Loaded(batch, targets, torch.from_numpy(plan.indices.copy()), plan.step, plan.epoch)

    def sample(self, index: int, epoch: int, *again: int) -> Sample:
        """One image as the network gets it, float32 from 0 to 1, with its objects on its pixels.

        Its augmentation is drawn from the seed, the epoch, the image, and, where images are repeated, the step.
        """
        rng = generator(self.seed, epoch, index, *again)
        sample = self._augmented(index, rng)
        if self.copy_paste and rng.random() < self.copy_paste:
            sample = paste(sample, self._augmented(int(rng.integers(len(self.dataset))), rng), rng)
        return sample if self.masks else sample._replace(masks=None)

    def _augmented(self, index: int, rng: np.random.Generator) -> Sample:
        """An image read, augmented and resized."""
        sample = read_sample(self.dataset, index, masks=self.masks or self.copy_paste > 0)
        if self.stuff is not None:
            sample = sample._replace(stuff=torch.from_numpy(self.stuff.read(index, *_shape(sample.image))))
        if self.proposals is not None:
            boxes, scores = self.proposals.all.best(index, self.proposals.keep)
            sample = sample._replace(proposals=torch.from_numpy(np.concatenate([boxes, scores[:, None]], axis=1)))
        if self.augment is None:
            image = self.resize(sample.image)
        else:
            sample = self.augment.geometry(sample, rng)
            image = self.augment.recolour(self.resize(sample.image), rng)
        old, new = _shape(sample.image), _shape(image)
        given = sample.proposals
        if given is not None:
            given = torch.cat([scale_boxes(given[:, :4], old, new), given[:, 4:]], dim=1)
        masks = sample.masks
        if masks is not None:
            masks = masks._replace(frames=scale_boxes(masks.frames, old, new))
        stuff = None if sample.stuff is None else coarse(sample.stuff, *new)
        return Sample(image, scale_boxes(sample.boxes, old, new), sample.labels, given, masks, stuff, old)


def read_sample(dataset: Dataset, index: int, *, masks: bool = False) -> Sample:
    """An image of a data set with the objects to train on, those that are neither crowd nor difficult.

    Raises DataError if the image cannot be read, or has another size than when the data set was opened.
    """
    pixels = dataset.image(index)
    height, width = pixels.shape[:2]
    objects = dataset.objects(index)
    learn = ~(objects.crowd | objects.difficult)
    boxes, labels = (torch.from_numpy(np.ascontiguousarray(a[learn])) for a in (objects.boxes, objects.labels))
    grids = None
    if masks:
        rows = int(dataset.offsets[index]) + np.flatnonzero(learn)
        grids = coverage([dataset.masks[int(row)] for row in rows] if dataset.masks is not None else [], height, width)
    return Sample(torch.from_numpy(pixels).permute(2, 0, 1), boxes, labels, masks=grids)


def scale_boxes(boxes: Float[Tensor, "g 4"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "g 4"]:
    """Boxes on an image resized from `old` to `new` (height, width), by the exact factor of each axis."""
    down, across = new[0] / old[0], new[1] / old[1]
    return boxes * torch.tensor([across, down, across, down])


def _shape(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _require_data(dataset: Dataset, *, masks: bool) -> None:
    if not len(dataset):
        raise DataError(f"{dataset.root}: the split {dataset.split!r} has no images.")
    if masks and dataset.masks is None and len(dataset.labels):
        raise DataError(
            f"{dataset.root}: the split {dataset.split!r} has no masks, and this model trains on them. Add masks "
            "(COCO's segmentation, YOLO's segments, VOC's SegmentationObject), or choose a model without them."
        )


def _worker_limit(workers: int, dataset: Dataset, resize: Resize, batch: int, *, masks: bool) -> int:
    """The number of workers whose batches fit into shared memory; containers often have 64 MiB of it."""
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    shapes = {resize.shape(int(h), int(w)) for h, w in np.unique(dataset.sizes, axis=0)}
    largest = 12 * batch * max(h for h, _ in shapes) * max(w for _, w in shapes)
    if masks:
        largest += batch * SIDE**2 * int(np.diff(dataset.offsets).max(initial=0))
    free = shutil.disk_usage(SHARED_MEMORY).free
    affordable = int(free / (largest * (PREFETCH + 1)))
    if affordable < workers:
        log.warning(
            "%s has %.0f MiB free, too little for %d workers with batches of %.0f MiB: using %d. "
            "In a container, start it with --shm-size 2g or --ipc=host.",
            *(SHARED_MEMORY, free / 2**20, workers, largest / 2**20, affordable),
        )
    return min(workers, affordable)


def _stream(reader: Reader, plans: Iterable[Plan], workers: int, pin: bool) -> Iterator[Loaded]:
    loader: DataLoader[Loaded | DataError] = DataLoader(
        reader,  # type: ignore[arg-type]  # torch's type is its own base class; only __getitem__ is used
        sampler=plans,
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # its own: otherwise every loader would advance torch's global generator
    )
    try:
        for loaded in loader:
            if isinstance(loaded, DataError):
                raise loaded
            yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TwostageError(
            f"A worker process that reads images was killed ({error}). Often memory runs out: use fewer --workers."
        ) from error


def _identity(value: T) -> T:
    return value


def _ignore_signals(_: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach the whole process group; only the main process handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
