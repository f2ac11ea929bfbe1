"""How long `twostage data check` takes on 10000 pictures of 500 x 375, in all three layouts, and when all are decoded.

    python benchmarks/bench_data_check.py --out benchmarks/results/data_check.md

The pictures are noise of several grains, each file with bytes of its own, so that every one has to be looked at. The
files are in the system's cache (warm): the first run is not counted.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from _timing import finish, hardware, table
from PIL import Image

from twostage.data.check import check
from twostage.data.convert import convert

HEIGHT, WIDTH, OBJECTS = 375, 500, 5


def main() -> None:
    """Make the data, check it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        coco = make(Path(scratch) / "coco", given.images)
        for kind in ("coco", "voc", "yolo"):
            root = coco if kind == "coco" else convert(coco, Path(scratch) / kind, kind, pictures="link").path
            times = [seconds(root, deep=False) for _ in range(given.repeats + 1)][1:]
            rows.append((kind, "headers and ends", f"{sorted(times)[len(times) // 2]:.1f}", f"{min(times):.1f}"))
        times = [seconds(coco, deep=True) for _ in range(given.repeats)]
        rows.append(("coco", "all decoded", f"{sorted(times)[len(times) // 2]:.1f}", f"{min(times):.1f}"))
    text = "\n\n".join(
        [
            "# data check",
            f"`python benchmarks/bench_data_check.py`: {given.images} pictures of {WIDTH} x {HEIGHT} with {OBJECTS} "
            "objects each; wanted: 20 s without decoding, 3 minutes with.",
            hardware(),
            table(("layout", "pictures", "seconds, median", "seconds, least"), rows),
        ]
    )
    finish(text, given.out)


def seconds(root: Path, *, deep: bool) -> float:
    """One check of a data set without faults."""
    started = time.perf_counter()
    report = check(root, deep=deep)
    if not report.ok:
        raise RuntimeError(report.format())
    return time.perf_counter() - started


def make(root: Path, count: int) -> Path:
    """A COCO data set."""
    rng = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    pictures = [jpeg(rng, grain) for grain in (2, 5, 12, 25, 60)]
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number:06d}.jpg"
        picture = pictures[number % len(pictures)]
        note = number.to_bytes(4, "big")
        comment = b"\xff\xfe" + (2 + len(note)).to_bytes(2, "big") + note
        (root / "train" / name).write_bytes(picture[:2] + comment + picture[2:])
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        corners = rng.integers(0, 300, (OBJECTS, 2)).tolist()
        sides = rng.integers(10, 75, (OBJECTS, 2)).tolist()
        for (x, y), (w, h) in zip(corners, sides, strict=True):
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": int(rng.integers(1, 21))}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **box})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 21)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return root


def jpeg(rng: np.random.Generator, grain: int) -> bytes:
    """Noise of this grain, as a file."""
    small = rng.integers(0, 256, (HEIGHT // grain + 1, WIDTH // grain + 1, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


if __name__ == "__main__":
    main()
