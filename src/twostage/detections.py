"""Detections of one image, with methods that draw, save and convert them.

Letters: n objects, K classes. Only numpy: detections are created, read and converted without torch.
"""

import base64
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from twostage import atomic
from twostage.errors import DataError, MissingError, UsageError, nearest
from twostage.ops.masks import decode

if TYPE_CHECKING:
    from PIL import Image

_NOT_IN_XML = re.compile(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]")  # but allowed in file names


class Detection(NamedTuple):
    """One object, from `detections[3]` or iteration; `box` is xyxy pixels, `proposal` the index of its proposal."""

    label: str
    class_id: int
    score: float
    box: Float32[np.ndarray, "4"]
    mask: dict | None
    proposal: int | None


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, from a detector in order of falling score.

    `boxes` are xyxy pixels of the upright original image, 0-based with half-open edges; `class_ids` are 0..K-1 and
    index `names`, which holds all K class names; `size` is the image's (height, width). `masks` are COCO RLEs of the
    whole image. `image` (RGB) is used only by `draw`. `proposals` are the indices of the proposals they came from.
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    class_ids: Int64[np.ndarray, " n"]
    names: tuple[str, ...]
    size: tuple[int, int]
    path: str | None = None
    image: UInt8[np.ndarray, "h w 3"] | None = None
    masks: list[dict] | None = None
    proposals: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        columns = {"scores": self.scores, "class_ids": self.class_ids, "masks": self.masks, "proposals": self.proposals}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise UsageError(f"Detections: {n} boxes but {len(column)} {name}; give one per box.")
        outside = self.class_ids[(self.class_ids < 0) | (self.class_ids >= len(self.names))]
        if len(outside):
            raise UsageError(f"Detections: class id {outside[0]} is not in 0..{len(self.names) - 1}, one per name.")

    def __len__(self) -> int:
        return len(self.boxes)

    @overload
    def __getitem__(self, index: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> "Detections": ...

    def __getitem__(
        self, index: int | np.integer | slice | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> "Detection | Detections":
        """`detections[3]` is one `Detection`; a slice, a boolean mask or an array of indices gives `Detections`."""
        if isinstance(index, int | np.integer) or (isinstance(index, np.ndarray) and index.ndim == 0):
            return self._one(range(len(self))[int(index)])
        if not isinstance(index, slice) and len(index) == 0:
            index = slice(0)
        kept: np.ndarray = np.arange(len(self))[index]
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            class_ids=self.class_ids[kept],
            masks=None if self.masks is None else [self.masks[i] for i in kept],
            proposals=None if self.proposals is None else self.proposals[kept],
        )

    def __iter__(self) -> Iterator[Detection]:
        return (self._one(i) for i in range(len(self)))

    def _one(self, i: int) -> Detection:
        class_id = int(self.class_ids[i])
        mask = None if self.masks is None else self.masks[i]
        proposal = None if self.proposals is None else int(self.proposals[i])
        return Detection(self.names[class_id], class_id, float(self.scores[i]), self.boxes[i], mask, proposal)

    def filter(self, *, conf: float = 0.0, classes: Sequence[str | int] | str | int | None = None) -> "Detections":
        """The detections with a score of at least `conf` and, if given, of one of `classes`: names or ids.

        Raises UsageError for an unknown class.
        """
        kept = self.scores >= conf
        if classes is not None:
            if isinstance(classes, str | int | np.integer):
                classes = [classes]  # type: ignore[list-item]
            kept &= np.isin(self.class_ids, [self._class_id(c) for c in classes])
        return self[kept]

    def _class_id(self, name: str | int) -> int:
        if isinstance(name, str):
            if name not in self.names:
                raise UsageError(f"No class {name!r}. {nearest(name, self.names)}")
            return self.names.index(name)
        if not 0 <= name < len(self.names):
            raise UsageError(f"No class id {name}; ids are 0..{len(self.names) - 1}.")
        return int(name)

    @property
    def labels(self) -> list[str]:
        """The class name of each object."""
        return [self.names[c] for c in self.class_ids]

    @property
    def xyxy(self) -> Float32[np.ndarray, "n 4"]:
        """`boxes`, as supervision names them."""
        return self.boxes

    @property
    def confidence(self) -> Float32[np.ndarray, " n"]:
        """`scores`, as supervision names them."""
        return self.scores

    @property
    def class_id(self) -> Int64[np.ndarray, " n"]:
        """`class_ids`, as supervision names them."""
        return self.class_ids

    @property
    def xywh(self) -> Float32[np.ndarray, "n 4"]:
        """Top left corner, width and height in pixels, as in COCO files."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    @property
    def cxcywh(self) -> Float32[np.ndarray, "n 4"]:
        """Centre, width and height in pixels."""
        return np.concatenate([(self.boxes[:, :2] + self.boxes[:, 2:]) / 2, self.xywh[:, 2:]], axis=1)

    @property
    def xyxyn(self) -> Float32[np.ndarray, "n 4"]:
        """`boxes` as fractions of the image's width and height."""
        height, width = self.size
        return self.boxes / np.array([width, height, width, height], dtype=np.float32)

    def draw(self, *, min_side: int = 0) -> "Image.Image":
        """The image with boxes, labels, scores and masks, enlarged if its shortest side is below `min_side`.

        It is `image`, or is read from `path`; raises UsageError if both are missing.
        """
        from twostage.drawing import draw_boxes

        return draw_boxes(
            self._picture(),
            self.boxes,
            self.labels,
            self.scores,
            class_ids=self.class_ids,
            masks=self.masks,
            min_side=min_side,
        )

    def _picture(self) -> UInt8[np.ndarray, "_ _ 3"]:
        if self.image is not None:
            return self.image
        if self.path is None:
            raise UsageError("These detections have no image to draw on: give Detections an `image` or a `path`.")
        from twostage.data.images import read_image

        return read_image(self.path)

    def save(self, path: str | Path) -> None:
        """Save by suffix: the drawn image (.jpg, .png, ...), `.json` (`to_dict`) or `.xml` (VOC)."""
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            atomic.write_text(Path(path), self.to_json())
        elif suffix == ".xml":
            atomic.write_text(Path(path), self.to_voc())
        else:
            from twostage.drawing import save_picture

            save_picture(self.draw(), path)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary, as one image of `predict --json`; boxes are rounded to 0.001 px and scores to 0.000001."""
        height, width = self.size
        objects = [
            {"label": label, "class_id": class_id, "score": score, "box": box}
            for label, class_id, score, box in zip(
                self.labels, self.class_ids.tolist(), _rounded(self.scores, 6), _rounded(self.boxes, 3), strict=True
            )
        ]
        if self.masks is not None:
            objects = [{**d, "mask": _plain_rle(rle)} for d, rle in zip(objects, self.masks, strict=True)]
        return {"path": self.path, "width": int(width), "height": int(height), "detections": objects}

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_coco(self, image_id: int, category_ids: Sequence[int] | np.ndarray | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file; `category_ids` gives each class's id in the file, class id + 1 by default."""
        ids = range(1, len(self.names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.names):
            raise UsageError(f"to_coco: {len(ids)} category ids for {len(self.names)} classes; give one per class.")
        rows = [
            {"image_id": int(image_id), "category_id": int(ids[c]), "bbox": box, "score": score}
            for c, box, score in zip(self.class_ids, _rounded(self.xywh, 3), _rounded(self.scores, 6), strict=True)
        ]
        if self.masks is not None:
            rows = [{**row, "segmentation": _plain_rle(rle)} for row, rle in zip(rows, self.masks, strict=True)]
        return rows

    def to_voc(self) -> str:
        """The text of a VOC annotation file: whole pixels from 1, the last one included; the format has no scores."""
        from twostage.data.voc_xml import annotation

        height, width = self.size
        first = np.clip(np.round(self.boxes[:, :2]) + 1, 1, [width, height])
        last = np.clip(np.round(self.boxes[:, 2:]), first, [width, height])
        sides = np.concatenate([first, last], axis=1).astype(int).tolist()
        name = _NOT_IN_XML.sub("?", Path(self.path).name) if self.path else ""
        objects: list[Any] = [(label, 0, box, {}) for label, box in zip(self.labels, sides, strict=True)]
        return annotation(name, self.size, objects, {})

    def to_pandas(self) -> Any:
        """A pandas DataFrame, one row per object: path, label, class_id, score, x1, y1, x2, y2."""
        try:
            import pandas
        except ImportError as error:
            raise MissingError("to_pandas needs pandas: pip install pandas") from error
        columns = {"path": self.path, "label": self.labels, "class_id": self.class_ids, "score": self.scores}
        corners = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        return pandas.DataFrame({**columns, **corners}, index=range(len(self)))

    def to_supervision(self) -> Any:
        """A `supervision.Detections`: masks as arrays, names as `data["class_name"]`."""
        try:
            import supervision
        except ImportError as error:
            raise MissingError("to_supervision needs supervision: pip install supervision") from error
        masks = None if self.masks is None else decode(self.masks).reshape(len(self), *self.size)  # type: ignore[arg-type]
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            mask=masks,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def __repr__(self) -> str:
        height, width = self.size
        where = f"{Path(self.path).name}, " if self.path else ""
        counts = ", ".join(f"{n} {name}" for name, n in Counter(self.labels).most_common(5))
        more = ", ..." if len(set(self.labels)) > 5 else ""
        what = (
            f"{counts}{more}; scores {self.scores.min():.2f} to {self.scores.max():.2f}"
            if len(self)
            else "no detections"
        )
        return f"Detections({where}{width} x {height} px: {what})"

    def _repr_html_(self) -> str:
        """For notebooks: the drawn image if there is one, and a table of the first twenty objects."""
        parts = [f"<p>{html.escape(repr(self))}</p>"]
        if self.image is not None or (self.path is not None and Path(self.path).is_file()):
            try:
                parts.append(self._drawn_html())
            except DataError as error:  # the file may have changed since; the table of boxes is still shown
                parts.append(f"<p>{html.escape(str(error))}</p>")
        cells = [(d.label, f"{d.score:.3f}", *(f"{v:.1f}" for v in d.box)) for d in self[:20]]
        head = "".join(f"<th>{name}</th>" for name in ("label", "score", "x1", "y1", "x2", "y2"))
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
        return "".join(parts)

    def _drawn_html(self) -> str:
        buffer = io.BytesIO()
        picture = self.draw(min_side=320)
        picture.thumbnail((800, 800))
        picture.save(buffer, "JPEG", quality=88)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="detections" src="data:image/jpeg;base64,{encoded}">'


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    """Python floats of so many decimals; by float64, because a float32 of 0.9 would become 0.8999999762."""
    return list(np.round(values.astype(np.float64), digits).tolist())


def _plain_rle(rle: dict) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": [int(s) for s in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}
