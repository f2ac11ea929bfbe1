"""One prediction from a cold start, the whole process: our command line and script beside torchvision's shortest one.

    python benchmarks/bench_startup.py --out benchmarks/results/startup.md

`faster_rcnn_mobilenet_v3_large_320_fpn` with the same random weights, from each library's own kind of file, on a
photo. The processes take turns; `import torch` alone, and with one forward pass of the prepared model on top, are the
floor. A first prediction on a machine, with an empty cache folder, chooses the forms of the layers too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from _pictures import photo_files, whence
from _timing import compare, finish, hardware, table, versus
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from twostage import Detector
from twostage.data.images import read_image
from twostage.inference.predictor import predict_arrays

MODEL = "faster_rcnn_mobilenet_v3_large_320_fpn"

PEER = """
import torch
from torchvision.io import decode_image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=81)
model.load_state_dict(torch.load({weights!r}))
with torch.inference_mode():
    print(len(model.eval()([decode_image({photo!r}) / 255])[0]["boxes"]))
"""

OURS = """
from twostage import Detector
print(len(Detector.load({weights!r}).predict({photo!r}, conf=0.05)))
"""


def process(words: Sequence[str]) -> None:
    """A process from start to end. Raises CalledProcessError where it fails."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def first_process(words: Sequence[str]) -> None:
    """The same on a machine without decisions on the forms of layers."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "TWOSTAGE_HOME": home}
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)


def write_weights(folder: Path) -> tuple[Path, Path]:
    """The same weights as torchvision's users and ours keep them."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=81)
    theirs, ours = folder / "theirs.pth", folder / "ours.safetensors"
    torch.save(model.state_dict(), theirs)
    names = [str(number) for number in range(80)]
    Detector.from_state_dict(model.state_dict(), source="torchvision", model=MODEL, names=names, device="cpu").save(
        ours
    )
    return theirs, ours


def main() -> None:
    """Time all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    (photo,) = photo_files(1)
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = write_weights(Path(scratch))
        predict = [sys.executable, "-m", "twostage", "predict", str(photo), "--weights", str(ours), "--conf", "0.05"]
        scripts = {
            "torchvision": [sys.executable, "-c", PEER.format(weights=str(theirs), photo=str(photo))],
            "twostage predict": predict,
            "Detector.load(...).predict(...)": [
                sys.executable,
                "-c",
                OURS.format(weights=str(ours), photo=str(photo)),
            ],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        cases: dict[str, Callable[[], object]] = {name: partial(process, words) for name, words in scripts.items()}
        cases["twostage predict, the first on a machine"] = partial(first_process, predict)
        times = compare(cases, repeats=given.repeats, warmup=1)
        detector, image = Detector.load(ours, device="cpu"), read_image(photo)
        forward = compare({"": partial(predict_arrays, detector.prepared, [image])}, repeats=given.repeats)[""]
    peer = times.pop("torchvision")
    rows = [versus(name, taken, peer) for name, taken in times.items()]
    floor = 1.3 * times["import torch"].median + forward.median
    text = "\n\n".join(
        [
            "# One prediction from a cold start, milliseconds: median (minimum)",
            f"`python benchmarks/bench_startup.py`. {whence()}",
            hardware(),
            table(["whole process", "twostage", "torchvision's script", "times faster, by median (by minimum)"], rows),
            f"A warm prediction takes {forward}; 1.3 times `import torch` and one of these are {floor:.0f}.",
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
