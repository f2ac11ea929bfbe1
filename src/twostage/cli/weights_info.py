"""`twostage weights info`: the metadata of a weights file or of published weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.verb import Outcome, verb
from twostage.cli.weights_list import to_dict
from twostage.common_options import WEIGHTS
from twostage.options import option
from twostage.weights.published import PUBLISHED

if TYPE_CHECKING:
    from twostage.weights.file import Card


@dataclass(frozen=True)
class InfoOptions:
    weights: str = option(help=WEIGHTS)


@verb(InfoOptions)
def info(options: InfoOptions) -> Outcome:
    """Print the metadata of a weights file, or the origin of published weights. Nothing is downloaded."""
    path = Path(options.weights)
    origin = {} if path.exists() or options.weights not in PUBLISHED else to_dict(PUBLISHED[options.weights])
    if origin:
        path = Path(origin["file"])
    metadata = {**origin, **(_of_file(path) if path.exists() or not origin else {})}
    rows = _rows(metadata)
    width = max(map(len, rows))
    for key, text in rows.items():
        print(f"{key:{width}}  {text}")
    return Outcome(metadata)


def _of_file(path: Path) -> dict[str, Any]:
    from twostage.weights.file import KEY, is_exported, load_tensors, read_card

    if is_exported(path):
        return _of_export(path)
    metadata, tensors = load_tensors(path)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    plain = {"file": str(path), "tensors": len(tensors), "values": parameters, "bytes": path.stat().st_size}
    if KEY not in metadata:
        return {**plain, "detector": False}
    return {**plain, "detector": True, **_of_card(read_card(path, metadata[KEY]))}


def _of_export(path: Path) -> dict[str, Any]:
    from twostage.inference.exported import ExportedModel

    model = ExportedModel.open(path)
    about = model.session.metadata
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "detector": True,
        "runtime": model.runtime,
        "precision": model.precision,
        "exported_from": about["weights"],
        "inputs": tuple(about["inputs"]),
        "outputs": tuple(about["outputs"]),
        **_of_card(model.card),
    }


def _of_card(card: "Card") -> dict[str, Any]:
    from twostage.models.component import to_dict

    return {
        "model": card.model,
        "names": card.names,
        "metrics": dict(card.metrics),
        "licence": card.licence,
        "version": card.version,
        "origin": dict(card.origin),
        "config": to_dict(card.config),
    }


def _rows(metadata: dict[str, Any]) -> dict[str, str]:
    """What is printed; each component of the configuration by its path, as in `--set model.rpn.nms=0.6`."""
    rows = {key: _line(value) for key, value in metadata.items() if key not in ("metrics", "config")}
    if metadata.get("metrics"):
        rows["metrics"] = _line(
            {name: f"{value:.4f}" if value >= 0 else "-" for name, value in metadata["metrics"].items()}
        )
    return rows | {f"model.{name}": _line(part) for name, part in metadata.get("config", {}).items()}


def _line(value: Any) -> str:
    if isinstance(value, dict):
        kind = f"{value['type'].removesuffix('Config')}: " if "type" in value else ""
        return kind + (", ".join(f"{key} {_part(part)}" for key, part in value.items() if key != "type") or "none")
    if isinstance(value, tuple) and not any(isinstance(part, tuple) for part in value):
        return ", ".join(map(str, value))
    if value is None:
        return "not known"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _part(value: Any) -> str:
    """A value in a line of several."""
    if isinstance(value, dict):
        return f"({_line(value)})"
    return "none" if value is None else str(value) if isinstance(value, tuple) else _line(value)
