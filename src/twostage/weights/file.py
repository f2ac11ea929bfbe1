"""Our weights file: safetensors whose header says in JSON what model it is, of which classes, and how good.

It carries no code. Pickles are not read here at all.
"""

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from twostage import __version__
from twostage.atomic import write_bytes
from twostage.errors import DataError, MissingError, UsageError
from twostage.kinds import coerce, matches

KEY = "twostage"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself. `fields` are the model's fields, all of them, whatever their defaults."""

    model: str
    names: tuple[str, ...]
    fields: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = "as the training data allow"
    version: str = __version__

    def fields_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The fields with some replaced; a `size` without a `max_size` keeps the ratio of the two."""
        size, longest = self.fields.get("size"), self.fields.get("max_size")
        fields = {**self.fields, **changes}
        if "size" in changes and "max_size" not in changes and size and longest:
            with suppress(TypeError, ValueError):  # a size that is no number is refused by the model's own check
                fields["max_size"] = max(1, round(float(changes["size"]) * longest / size))
        return fields

    def to_json(self) -> str:
        """The header's entry."""
        return json.dumps({"format": FORMAT, **asdict(self)})


def save_weights(path: Path, state: Mapping[str, Tensor], card: Card) -> None:
    """Write a weights file; it is complete or not there at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata={KEY: card.to_json()}))


def load_weights(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Read a weights file of ours.

    Raises MissingError when there is none, DataError when it is not one of ours or is damaged.
    """
    metadata, state = load_tensors(path)
    if KEY not in metadata:
        raise DataError(
            f"{path}: a safetensors file, but not a twostage detector: its header has no {KEY!r} entry. "
            "Weights of other projects come in through Detector.from_state_dict."
        )
    return read_card(path, metadata[KEY]), state


def load_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header entries and tensors of any safetensors file. Raises as `load_weights`."""
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        mend = "It may have been cut short: copy it again."
        if path.suffix != ".safetensors":
            mend = "Pickled weights (.pth, .pt) can run code when read and are not opened here."
        raise DataError(f"{path}: not a readable safetensors file ({error}). {mend}") from None


def require_file(path: Path) -> None:
    """Raises MissingError where there is no such weights file, UsageError for what is no regular file."""
    if not path.exists():
        bring = "`twostage train DATA --out RUN` leaves RUN/weights/best.safetensors"
        raise MissingError(f"{path}: no such weights file. Give one that training wrote: {bring}.")
    if path.is_dir():
        inside = path / "weights" / "best.safetensors"
        hint = f" Did you mean {inside}?" if inside.exists() else ""
        raise UsageError(f"{path}: a folder, not a weights file.{hint}")
    if not path.is_file():  # a pipe would be waited for without end
        raise UsageError(f"{path}: not a regular file. Copy the weights into one.")


def read_card(path: Path, text: str) -> Card:
    """What a header's entry says. Raises DataError when it does not describe a detector."""
    try:
        content = json.loads(text)
        if content.pop("format") > FORMAT:
            written = f"written by twostage {content.get('version')}, in a form that {__version__} does not know"
            raise DataError(f"{path}: {written}. Update twostage.")
        model, names, fields = content["model"], content["names"], content["fields"]
        if not (isinstance(model, str) and isinstance(fields, dict) and isinstance(names, list) and names):
            raise TypeError(f"model {model!r}, names {names!r}")
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"names {names!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"names {names!r} are not different")
        metrics, rest = content.get("metrics", {}), [content.get(key, "") for key in ("licence", "version")]
        if not (isinstance(metrics, dict) and all(matches(coerce(value, float), float) for value in metrics.values())):
            raise TypeError(f"metrics {metrics!r}")
        if not all(isinstance(value, str) for value in rest):
            raise TypeError(f"licence and version {rest!r}")
        return Card(**{**content, "names": tuple(names)})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: its header does not describe a detector ({error!r}).") from None
