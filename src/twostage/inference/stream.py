"""The detections of a stream of images, which a wrong image does not end."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from twostage.detections import Detections
from twostage.errors import DataError
from twostage.inference.predictor import detect_images
from twostage.inference.runner import Runner
from twostage.inference.sources import Item
from twostage.inference.test_time_augmentation import TestTimeAugmentation, detect_augmented
from twostage.models.heads.postprocess import PostprocessConfig


def detect_stream(
    model: Runner,
    items: Iterator[Item],
    names: tuple[str, ...],
    *,
    postprocess: PostprocessConfig,
    batch: int,
    views: TestTimeAugmentation,
) -> Iterator[Detections]:
    """Detections of each image in turn, `batch` of them (with test-time augmentation: of its views) at a time.

    Images that cannot be read, or that the model cannot take, are left out. Raises DataError at the end, which names
    them all.
    """
    refused: list[DataError] = []
    while group := list(islice(items, batch)):
        refused += [item.error for item in group if item.error]
        readable = [item for item in group if item.image is not None]
        if views.plain:
            found: Iterable[Detections | DataError] = _detections_or_errors(model, readable, names, postprocess)
        else:
            found = (_augmented_or_error(model, item, names, postprocess, views, batch) for item in readable)
        for one in found:
            if isinstance(one, DataError):
                refused.append(one)
            else:
                yield one
    if refused:
        raise DataError("\n".join(str(error) for error in refused))


def _detections_or_errors(
    model: Runner, items: Sequence[Item], names: tuple[str, ...], postprocess: PostprocessConfig
) -> list[Detections | DataError]:
    """The detections of each image, or the reason why there are none."""
    images, paths = [item.image for item in items if item.image is not None], [item.path for item in items]
    try:
        return list(detect_images(model, images, names, postprocess=postprocess, paths=paths))
    except DataError as error:
        if len(items) == 1:
            return [error]
    # One of them is refused: each by itself.
    return [one for item in items for one in _detections_or_errors(model, [item], names, postprocess)]


def _augmented_or_error(
    model: Runner,
    item: Item,
    names: tuple[str, ...],
    postprocess: PostprocessConfig,
    views: TestTimeAugmentation,
    batch: int,
) -> Detections | DataError:
    """The detections of an image from several views, or the reason why there are none."""
    assert item.image is not None
    try:
        return detect_augmented(
            model, item.image, names, postprocess=postprocess, views=views, batch=batch, path=item.path
        )
    except DataError as error:
        return error
