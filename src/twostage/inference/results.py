"""Files of predictions, written while they come: drawn images, JSON, COCO results, PASCAL VOC XML."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.atomic import write_json
from twostage.errors import UsageError, nearest
from twostage.inference.free_names import free_name

if TYPE_CHECKING:
    from twostage.detections import Detections

FORMATS = ("json", "coco", "voc")


def check_formats(formats: Iterable[str]) -> None:
    """Raises UsageError for a format that is not one of FORMATS."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"format is {name!r}. {nearest(name, FORMATS)}")


class ResultsWriter:
    """Writes each image with its boxes into `folder`, and its VOC file; `close` writes the files of all images.

    Images of the same name from several folders are numbered: `photo.jpg`, `photo-2.jpg`. Raises UsageError for an
    unknown format. `settings` are those of the predictions, kept in results.json.
    """

    def __init__(
        self, folder: Path, formats: Iterable[str] = ("json",), settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.formats = tuple(formats)
        check_formats(self.formats)
        self.settings = settings
        self._taken: dict[str, int] = {}
        self._images: list[dict[str, Any]] = []
        self._coco: list[dict[str, Any]] = []

    def add(self, detections: "Detections") -> dict[str, Any]:
        """Write the files of one image; its results as a dictionary, with the name of the drawn image as `picture`."""
        path = Path(detections.path or "image")
        _, _, frame = path.suffix.partition("#")  # of a video: walk.mp4#12
        name = free_name(f"{path.stem}-{frame}" if frame else path.stem, self._taken)
        detections.save(self.folder / f"{name}.jpg")
        if "voc" in self.formats:
            detections.save(self.folder / "voc" / f"{name}.xml")
        self._images.append({**detections.to_dict(), "picture": f"{name}.jpg"})
        image_id = len(self._images)
        # COCO's tools ignore unknown keys; `twostage eval` matches images and classes of any data set by these two.
        self._coco += [
            {**entry, "file_name": detections.path, "category_name": label}
            for entry, label in zip(detections.to_coco(image_id), detections.labels, strict=True)
        ]
        return self._images[-1]

    def close(self) -> None:
        """Write results.json and coco.json, where asked for, of all images added so far."""
        if "json" in self.formats:
            settings = {} if self.settings is None else {"settings": self.settings}
            write_json(self.folder / "results.json", {"images": self._images, **settings})
        if "coco" in self.formats:
            write_json(self.folder / "coco.json", self._coco)
