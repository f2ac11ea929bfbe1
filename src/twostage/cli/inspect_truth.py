"""The objects of one image, from the data set that has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import DataError, UsageError

if TYPE_CHECKING:
    from twostage.cli.inspect import InspectOptions
    from twostage.data.dataset import Dataset
    from twostage.inspection.account import Objects
    from twostage.inspection.trace import Target


@dataclass(frozen=True, eq=False)
class Truth:
    """All objects of the image for the account, and those that are learned."""

    objects: "Objects"
    target: "Target"


def truth_of(options: "InspectOptions", data: Path, names: Sequence[str]) -> Truth:
    """The objects of the image in a data set, with the detector's class ids; those of other classes are left out.

    Raises DataError where the data set does not have the image, UsageError where it has none of the classes.
    """
    import numpy as np

    from twostage.data.dataset import match_classes, select_classes, select_images

    dataset, index = _find(options, data)
    _require_size(options.source, dataset, index)
    labels = dataset.objects(index).labels
    shared = [name for name in dataset.names if name in names]
    if len(labels) and not shared:
        raise UsageError(
            f"{data}: its classes are {', '.join(dataset.names)}, those of the detector {', '.join(names)}: none is "
            "the same. Give the data set that the detector was trained on, or one like it."
        )
    if other := {dataset.names[label] for label in labels} - set(shared):
        print(f"Left out: objects of classes that the detector does not have: {', '.join(sorted(other))}")
    image = select_images(dataset, np.array([index]))
    return _truth(match_classes(select_classes(image, shared), names).objects(0))


def _truth(found: Any) -> Truth:
    from twostage.inspection.account import Objects

    learned = ~found.crowd
    objects = Objects.of(found.boxes, found.labels, learned & ~found.difficult)
    return Truth(objects, (found.boxes[learned], found.labels[learned]))


def _find(options: "InspectOptions", data: Path) -> tuple["Dataset", int]:
    """The split and place of the image: that of its very file, else the only one of its name."""
    same_name = []
    source = options.source.resolve()
    seen = []
    for dataset in _splits(options, data):
        seen.append(dataset.split)
        for index in range(len(dataset)):
            if dataset.path(index).name != source.name:
                continue
            if dataset.path(index).resolve() == source:
                return dataset, index
            same_name.append((dataset, index))
    if len(same_name) > 1:
        raise DataError(
            f"{options.source}: {len(same_name)} images of {data} have this name. Name the file within the data set."
        )
    if not same_name:
        raise DataError(
            f"{options.source}: is not in {data} (looked in {', '.join(seen)}). Name an image of that data set, or "
            "leave --data out."
        )
    return same_name[0]


def _splits(options: "InspectOptions", data: Path) -> Iterator["Dataset"]:
    from twostage.data.layout import Options
    from twostage.data.recognise import find_layout, opener

    layout = find_layout(data)
    open_split = opener(layout, Options(options.images, options.voc_offset, "skip", boxes=options.boxes))
    for split in [options.split] if options.split else layout.splits:
        yield open_split(split)


def _require_size(source: Path, dataset: "Dataset", index: int) -> None:
    """Raises DataError for another image of the same name."""
    from twostage.data.images import read_image

    height, width = read_image(source).shape[:2]
    if (height, width) != tuple(dataset.sizes[index].tolist()):
        own = " x ".join(map(str, dataset.sizes[index].tolist()[::-1]))
        raise DataError(
            f"{source}: is {width} x {height}, and {dataset.path(index)} is {own}: another image of the same name."
        )
