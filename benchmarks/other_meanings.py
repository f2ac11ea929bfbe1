"""Valid files that mean something else: boxes in every notation, and other ids, paths, nesting, sizes and classes.

    python benchmarks/other_meanings.py --cases 2000 --out benchmarks/results/other_meanings.md

Each case is a data set of 3 to 6 images with 18 to 60 boxes in COCO, VOC or YOLO: two of three have boxes in a random
order and unit, the others a change of `_meanings.py`. It is read as training reads it. A case is right when its boxes
are those that were meant, refused when an error names what is in doubt, and silent when other boxes are read without a
word.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from _meanings import CHANGES
from _timing import finish, hardware, table
from PIL import Image

from twostage.box_notations import ORDERS, UNITS
from twostage.data.faults import UNDECIDED, FaultyDataError
from twostage.data.notation import Notation
from twostage.data.recognise import find_layout, open_dataset

SIZES = ((640, 480), (1280, 720), (800, 1066), (1920, 1080), (4000, 3000))  # on a square x and y look alike
CHANGED = 1 / 3  # of the cases
OWN = {"coco": Notation("xywh"), "voc": Notation("xyxy"), "yolo": Notation("cxcywh", "fractions")}
TOLERANCE = 1.5  # pixels: VOC may count from 0 or from 1


def boxes_of(generator: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    """Boxes xyxy of all sizes anywhere on the image."""
    sides = generator.uniform(0.03, 0.6, (count, 2)) * [width, height]
    corners = generator.uniform(0, 1, (count, 2)) * ([width, height] - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def written(boxes: np.ndarray, notation: Notation, width: int, height: int) -> np.ndarray:
    """The same in another notation."""
    scale = 1.0 if notation.unit == "pixels" else UNITS[notation.unit] / np.array([width, height, width, height])
    x1, y1, x2, y2 = (boxes * scale).T
    columns = {
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "xyxy": (x1, y1, x2, y2),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        "yxyx": (y1, x1, y2, x2),
        "yxhw": (y1, x1, y2 - y1, x2 - x1),
        "xxyy": (x1, x2, y1, y2),
    }
    return np.stack(columns[notation.order], axis=1)


def write(root: Path, kind: str, rows: list[np.ndarray], size: tuple[int, int]) -> None:
    """A data set with these numbers as the boxes of its images."""
    width, height = size
    folder = root / {"coco": "train", "voc": "JPEGImages", "yolo": "images/train"}[kind]
    folder.mkdir(parents=True)
    for number in range(len(rows)):
        Image.new("1", size).save(folder / f"{number}.png")
    if kind == "coco":
        images = [{"id": i, "file_name": f"{i}.png", "width": width, "height": height} for i in range(len(rows))]
        flat = [(i, row) for i, of_one in enumerate(rows) for row in of_one.tolist()]
        annotations = [{"id": k, "image_id": i, "category_id": 1, "bbox": row} for k, (i, row) in enumerate(flat)]
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
        (root / "annotations").mkdir()
        (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
        return
    if kind == "yolo":
        (root / "data.yaml").write_text("train: images/train\nnames: [a]\n")
        labels = root / "labels" / "train"
        labels.mkdir(parents=True)
        for number, of_one in enumerate(rows):
            (labels / f"{number}.txt").write_text("".join(f"0 {' '.join(map(str, row))}\n" for row in of_one.tolist()))
        return
    (root / "Annotations").mkdir()
    for number, of_one in enumerate(rows):
        objects = "".join(
            "<object><name>a</name><bndbox>"
            + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True))
            + "</bndbox></object>"
            for row in of_one.tolist()
        )
        (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{objects}</annotation>")


def outcome(number: int, scratch: Path) -> tuple[str, str, str]:
    """The format and the notation of a case, and what became of it."""
    chance, generator = random.Random(number), np.random.default_rng(number)
    kind, size = chance.choice(("coco", "voc", "yolo")), chance.choice(SIZES)
    change = chance.choice(CHANGES[kind]) if chance.random() < CHANGED else None
    notation = Notation(chance.choice(tuple(ORDERS)), chance.choice(tuple(UNITS))) if change is None else OWN[kind]
    what = str(notation) if change is None else change.__name__
    meant = [boxes_of(generator, chance.randint(6, 10), *size) for _ in range(chance.randint(3, 6))]
    root = scratch / str(number)
    write(root, kind, [written(boxes, notation, *size) for boxes in meant], size)
    if change is not None:
        change(root)
    try:
        data = open_dataset(root, split=find_layout(root).splits[0])
    except FaultyDataError as error:
        codes = {fault.code for fault in error.faults if fault.severity == "error"}
        return kind, what, "refused" if codes & UNDECIDED else f"refused as {', '.join(sorted(codes))}"
    expected = np.concatenate(meant)
    same = data.boxes.shape == expected.shape and np.abs(data.boxes - expected).max() <= TOLERANCE
    said = any(fault.severity != "note" for fault in data.faults)
    return kind, what, "right" if same else "other boxes, with repairs" if said else "silent"


def main() -> None:
    """Run the cases, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--only", type=int, help="one case, whose outcome is printed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = range(given.cases) if given.only is None else [given.only]
        outcomes = [outcome(number, Path(folder)) for number in numbers]
    if given.only is not None:
        print(outcomes[0])
        return
    changes = {change.__name__ for some in CHANGES.values() for change in some}
    counted = Counter((kind, what if what in changes else "a notation", became) for kind, what, became in outcomes)
    silent = Counter((kind, what) for kind, what, became in outcomes if became not in ("right", "refused"))
    rows = [[kind, what, became, count] for (kind, what, became), count in sorted(counted.items())]
    text = [
        "# Valid files of another meaning",
        f"`python benchmarks/other_meanings.py --cases {given.cases}`",
        hardware(),
        table(["format", "what is other", "outcome", "cases"], rows),
        "Neither right nor refused: " + (", ".join(f"{k} {n}: {c}" for (k, n), c in silent.items()) or "none"),
    ]
    finish("\n\n".join(text), given.out)


if __name__ == "__main__":
    main()
