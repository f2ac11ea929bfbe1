"""From what a person calls weights to a file: a path, or a published name, fetched and converted once."""

import logging
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock

from twostage.errors import MissingError, nearest
from twostage.folders import cache_folder, made_in_cache
from twostage.weights.file import require_file
from twostage.weights.pickled import coco_names, convert_backbone, convert_detector
from twostage.weights.published import LICENCE, PUBLISHED, Published, cached

log = logging.getLogger("twostage.weights")


def find_weights(given: str | Path, *, offline: bool = False) -> Path:
    """The file that `given` means. A name is fetched where it is not there yet, unless `offline`.

    Raises MissingError where there is no such file and no such name, or the network does not bring it.
    """
    path, name = Path(given), str(given)
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
            convert_detector(original, target, one.model, coco_names(), licence=LICENCE, metrics=metrics, **one.fields)
        original.unlink()
    log.info("Kept as %s", target)
    return target
