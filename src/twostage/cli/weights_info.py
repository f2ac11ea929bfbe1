"""`twostage weights info`: what a weights file, or a name, stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.options import option
from twostage.weights.published import LICENCE, PUBLISHED, cached, published


@dataclass(frozen=True)
class InfoOptions:
    """Of what."""

    weights: str = option(help="Weights file, or a name of `twostage weights list`.")


@verb(InfoOptions)
def info(options: InfoOptions) -> Outcome:
    """Tell what a weights file says of itself, or where the weights of a name come from. Nothing is fetched."""
    path = Path(options.weights)
    known = {} if path.exists() or options.weights not in PUBLISHED else _of_name(options.weights)
    if known:
        path = Path(known["file"])
    found = {**known, **(_of_file(path) if path.exists() or not known else {})}
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{key:{width}}  {_line(value)}")
    return Outcome(found)


def _of_name(name: str) -> dict[str, Any]:
    one = published(name)
    return {
        "name": one.name,
        "about": one.about,
        "url": one.url,
        "size_mib": one.size,
        "sha256": f"{one.sha256}...",
        "licence": LICENCE,
        "file": str(cached(one)),
        "here": cached(one).exists(),
    }


def _of_file(path: Path) -> dict[str, Any]:
    from twostage.models.component import to_dict
    from twostage.weights.file import KEY, load_tensors, read_card

    metadata, tensors = load_tensors(path)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    plain = {"file": str(path), "tensors": len(tensors), "values": parameters, "bytes": path.stat().st_size}
    if KEY not in metadata:
        return {**plain, "detector": False}
    card = read_card(path, metadata[KEY])
    return {
        **plain,
        "detector": True,
        "model": card.model,
        "names": card.names,
        "metrics": dict(card.metrics),
        "licence": card.licence,
        "version": card.version,
        "config": to_dict(card.config),
    }


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
