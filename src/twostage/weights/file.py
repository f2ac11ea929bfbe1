"""Our weights file: safetensors whose header holds in JSON the model's name and configuration, its classes and metrics.

It carries no code. Pickles are not read here at all.
"""

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twostage import __version__
from twostage.atomic import replacing
from twostage.data.files import text_name
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.folders import cache_folder
from twostage.kinds import coerce, matches
from twostage.models.component import UnknownFieldError, from_dict, to_dict
from twostage.models.config import DetectorConfig
from twostage.models.configure import MOVED, configure, names_of
from twostage.models.sppnet import SCALES, scaled
from twostage.models.zoo import ZOO

log = logging.getLogger("twostage.weights")

KEY = "twostage"
STAGEWISE_KEY = "twostage-lineage"  # in the first files of R-CNN and SPPnet
OF_DATA = "as the training data allow"
FORMAT = 2  # 1 had one flat dictionary of the fields of all models


@dataclass(frozen=True)
class Card:
    """The header of a weights file. `model` is the name in the zoo whose configuration `config` began from.

    `origin` is where the tensors come from: of a training its data, recipe and length, of a conversion the project and
    the file.
    """

    model: str
    names: tuple[str, ...]
    config: DetectorConfig
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = OF_DATA
    version: str = __version__
    origin: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The header's entry."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps({"format": FORMAT, **values, "config": to_dict(self.config)})


def save_weights(path: Path, state: Mapping[str, Tensor], card: Card) -> None:
    """Write a weights file. As `save_tensors`."""
    save_tensors(path, state, {KEY: card.to_json()})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with these header entries; it is complete or not there at all."""
    plain, written = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in written:  # safetensors refuses memory that is shared
            own = own.clone()
        written.add(own.untyped_storage().data_ptr())
        plain[name] = own
    with replacing(path) as beside:
        try:
            save_file(plain, beside, metadata)
        except SafetensorError as error:  # with the system's number of the error in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(*((int(number[1]), os.strerror(int(number[1]))) if number else (str(error),))) from None


def load_weights(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Read a weights file of ours.

    Raises MissingError when there is none, DataError when it is not one of ours or is damaged.
    """
    metadata, state = load_tensors(path)
    if STAGEWISE_KEY in metadata:
        card = _stagewise_card(path, metadata[STAGEWISE_KEY])
        backbone = "head.regions.backbone." if card.model == "rcnn_tiny" else "backbone.body."
        return card, {_stagewise_name(name, backbone): tensor for name, tensor in state.items()}
    if KEY not in metadata:
        raise DataError(
            f"{path}: a safetensors file, but not a twostage detector: its header has no {KEY!r} entry. "
            "Weights of other projects come in through Detector.from_state_dict."
        )
    card = read_card(path, metadata[KEY])
    return card, head_named(state) if card.model.startswith("retinanet_") else state


def head_named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RetinaNet's tensors by their present names; format 1 had its head in the place of the RPN."""
    return {re.sub(r"^rpn\.", "head.", name): tensor for name, tensor in state.items()}


def load_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header entries and tensors of any safetensors file. Raises as `load_weights`."""
    require_weights(path)
    try:
        with text_name(path) as opened, safe_open(opened, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        mend = "It may have been cut short: copy it again."
        if _is_in_cache(path):
            mend = "It may have been cut short: remove it, and it is made again."
        if path.suffix != ".safetensors":
            mend = "Pickles (.pth, .pt, .pkl) are read by `twostage weights convert FILE --out NEW.safetensors`."
        raise DataError(f"{path}: not a readable safetensors file ({error}). {mend}") from None


def _is_in_cache(path: Path) -> bool:
    """Whether a weights file was made here, from a package or a download."""
    with suppress(TwostageError):  # without a home folder there is no cache
        return path.parent == cache_folder("weights")
    return False


def is_exported(path: Path) -> bool:
    """Whether a file's name is that of an export: `inference.exported` opens it."""
    return path.suffix.lower() in (".onnx", ".xml", ".pt2")


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_weights(path: Path) -> None:
    """As `require_file`; and DataError for an exported file, which has no weights to begin from."""
    require_file(path)
    if is_exported(path):
        raise DataError(
            f"{path}: an exported file, which holds a program and no weights by their names: give the weights file "
            "that it was exported from."
        )


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
    """The content of a header's entry. Raises DataError when it does not describe a detector of this version."""
    try:
        content = json.loads(text)
        format = content.pop("format")
        if format > FORMAT:
            raise DataError(_of_a_later_version(path, content, "its format"))
        model, names = content["model"], content["names"]
        if not (isinstance(model, str) and isinstance(names, list) and names):
            raise TypeError(f"model {model!r}, names {names!r}")
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"names {names!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"names {names!r} are not different")
        metrics, rest = content.get("metrics", {}), [content.get(key, "") for key in ("licence", "version")]
        if not (isinstance(metrics, dict) and all(matches(coerce(value, float), float) for value in metrics.values())):
            raise TypeError(f"metrics {metrics!r}")
        if not isinstance(content.get("origin", {}), dict):
            raise TypeError(f"origin {content['origin']!r}")
        if not all(isinstance(value, str) for value in rest):
            raise TypeError(f"licence and version {rest!r}")
        if model not in ZOO:
            raise DataError(_of_a_later_version(path, content, f"the model {model!r}"))
        stored = content.pop("fields" if format == 1 else "config")
        config = _flat_config(path, content, stored) if format == 1 else _config(path, content, stored)
        return Card(**{**content, "names": tuple(names), "config": config})
    except UsageError as error:
        raise DataError(f"{path}: its header does not describe a detector ({error}).") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: its header does not describe a detector ({error!r}).") from None


def _config(path: Path, content: Mapping[str, Any], stored: dict[str, Any]) -> DetectorConfig:
    """The configuration of a header."""
    try:
        config: DetectorConfig = from_dict(type(ZOO[content["model"]]), stored)
    except UnknownFieldError as error:
        raise DataError(_of_a_later_version(path, content, f"the field {str(error)!r}")) from None
    return config


def _flat_config(path: Path, content: Mapping[str, Any], stored: dict[str, Any]) -> DetectorConfig:
    """The same of format 1, which held the fields of all models; those of others are left out."""
    template = ZOO[content["model"]]
    # These two choose components, on which the names of the other values depend.
    choices = ("proposals", "roi")
    chosen: dict[str, Any] = {name: stored[name] for name in choices if name in stored and name in names_of(template)}
    base = configure(template, chosen)
    every = {name for config in ZOO.values() for name in names_of(config)} | set(MOVED)
    own = names_of(base)
    values = {name: value for name, value in stored.items() if name in own or name not in every}
    if seed := stored.get("proposals_seed"):
        log.warning("%s was trained on proposals of the seed %s. Its own are those of seed 0 now.", path, seed)
    strange = [name for name in values if name not in own]
    if strange:
        raise DataError(_of_a_later_version(path, content, f"the field {strange[0]!r}"))
    return configure(base, values)


def _stagewise_card(path: Path, text: str) -> Card:
    """The header of the first R-CNNs and SPPnets, which had only the classes and SPPnet's sizes."""
    try:
        content = json.loads(text)
        names, sizes = tuple(map(str, content["names"])), content["sizes"]
        if sizes is None:
            return Card("rcnn_tiny", names, ZOO["rcnn_tiny"])
        five = len(sizes) > 1
        model = "sppnet_tiny_5_scales" if five else "sppnet_tiny"
        regions = scaled(sizes[SCALES.index(688)] if five else sizes[0], five=five)
        return Card(model, names, replace(ZOO[model], regions=regions))  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: its header does not describe an R-CNN or SPPnet ({error!r}).") from None


def _stagewise_name(name: str, backbone: str) -> str:
    """The present name of a tensor of such a file."""
    if name.startswith("net.backbone."):
        return name.replace("net.backbone.", backbone)
    return f"head.{name.removeprefix('net.')}"


def _of_a_later_version(path: Path, content: Mapping[str, Any], what: str) -> str:
    return (
        f"{path}: written by twostage {content.get('version')}; this is {__version__}, which does not have {what}. "
        "Update twostage."
    )
