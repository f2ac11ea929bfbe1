"""Thousands of faulty files through readers and verbs: no traceback, no hang, no flood of memory, no fault unnamed.

    python benchmarks/faulty_inputs.py --cases 10000 --out benchmarks/results/faulty_inputs.md

Each case breaks one file of a small data set (or the file itself: its kind, its permission, its name), calls a verb on
it, and puts the file back. A case fails when the verb ends in anything but one of its exit codes with a message that
names the file or the data set, takes more than 10 seconds twice, or lets the process grow by more than 1 GiB. Cases
are numbered, and `--only N` shows one.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HANG, MEMORY = 10, 1 << 30  # seconds, bytes
CODES = {0, 2, 3, 4}
VALUES = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.0, 0.5, "", "x", "1", "\0", "../x", "NaN", [], {}, [[]],
    [1, 2, 3], [1, 2, 3, 4], [-5, -5, 1e9, 1e9], {"size": [1, 1], "counts": [1]},
    {"size": [2**30, 2**30], "counts": "0"}, [[1e9, 1e9, 2e9, 2e9, 3e9, 1]], "a" * 100_000, "한국 🙂",
)  # fmt: skip
TEXTS = (
    b"NaN", b"Infinity", b"-1", b"1e400", b"9" * 400, b"\x00", b"\xff\xfe", b"[" * 20_000, b"{\"a\":" * 20_000, b"]",
    b"<a>" * 20_000, b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"<!--", b"<![CDATA[", b"*a", b"&a [*a]", b"\n", b" ",
    b"\r\n", b"\t", b"'", b'"', b"%", b"\\u0000", b"\xed\xa0\x80", b"!!python/object:os.system",
)  # fmt: skip


class Case(NamedTuple):
    """What is broken and how, and the words of the command line."""

    file: Path
    how: str
    words: list[str]


class Bench:
    """A folder of sound files, and the cases drawn from it by number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seeds = {kind: sorted(p for p in (root / kind).rglob("*") if p.is_file()) for kind in KINDS}

    def case(self, number: int) -> tuple[Case, Callable[[], None]]:
        """The case of a number, and what breaks its file."""
        draw = random.Random(number)
        kind = draw.choice(KINDS)
        file = draw.choice(self.seeds[kind])
        # A pipe that is named on the command line may have a writer one day.
        how = draw.choice([how for how in BREAKS if kind not in ("results", "config") or how is not a_pipe])
        words = draw.choice(VERBS[kind])
        known = {"root": self.root / kind, "file": file, "base": self.root, "out": self.root / "out"}
        return Case(file, how.__name__, [word.format(**known) for word in words]), lambda: how(file, draw)


def truncated(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content) + 1)])


def flipped(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 1, 3, 30))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def early_flipped(file: Path, draw: random.Random) -> None:
    """Headers are where sizes and offsets are."""
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 2, 8))):
        if content:
            content[draw.randrange(min(64, len(content)))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
    file.write_bytes(content)


def spliced(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    file.write_bytes(
        content[:begin] + draw.choice(TEXTS) * draw.choice((1, 1, 1, 50)) + content[draw.choice((begin, end)) :]
    )


def another_number(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    digits = [i for i, byte in enumerate(content) if byte in b"0123456789"]
    if digits:
        at = draw.choice(digits)
        content = (
            content[:at] + draw.choice((b"-", b"1e999", b"NaN", b"0" * 30, b"9" * 30, b".", b"x")) + content[at + 1 :]
        )
    file.write_bytes(content)


def another_value(file: Path, draw: random.Random) -> None:
    """One node of a JSON document replaced, doubled or removed; other files are truncated."""
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        truncated(file, draw)
        return
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = draw.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        if draw.random() < 0.15:
            del node[key]
        elif isinstance(node, list) and draw.random() < 0.15:
            node.append(node[key])
        else:
            node[key] = draw.choice(VALUES)
        break
    file.write_text(json.dumps(document))


def emptied(file: Path, _draw: random.Random) -> None:
    file.write_bytes(b"")


def noise(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.randbytes(draw.choice((1, 100, 10_000))))


def exchanged(file: Path, draw: random.Random) -> None:
    """With another file of the same data set."""
    other = draw.choice([path for path in file.parents[1].rglob("*") if path.is_file()])
    file.write_bytes(other.read_bytes())


def removed(file: Path, _draw: random.Random) -> None:
    file.unlink()


def a_folder(file: Path, _draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def a_circle(file: Path, _draw: random.Random) -> None:
    file.unlink()
    file.symlink_to(file)


def a_pipe(file: Path, _draw: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def huge_header(file: Path, draw: random.Random) -> None:
    """A picture that claims 60000 x 60000 pixels."""
    file.write_bytes(
        draw.choice(
            (
                b"P6 60000 60000 255\n" + bytes(100),
                b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(30),
                b"BM" + bytes(16) + (60000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(100),
                b"GIF89a" + (60000).to_bytes(2, "little") * 2 + bytes(100),
            )
        )
    )


BREAKS = (
    truncated, flipped, early_flipped, spliced, spliced, another_number, another_value, another_value, another_value,
    emptied, noise, exchanged, removed, a_folder, a_circle, a_pipe, huge_header,
)  # fmt: skip
_DATA = [
    ["data", "check", "{root}"],
    ["data", "check", "{root}", "--deep"],
    ["data", "check", "{root}", "--fix", "{out}"],
    ["data", "stats", "{root}", "--out", "{out}"],
    ["data", "view", "{root}", "--out", "{out}"],
    ["data", "convert", "{root}", "--to", "coco", "--out", "{out}"],
    ["data", "convert", "{root}", "--to", "voc", "--out", "{out}"],
    ["data", "split", "{root}", "--to", "yolo", "--out", "{out}"],
    ["eval", "{root}", "--predictions", "{base}/results/results.json", "--out", "{out}"],
    ["train", "{root}", "--config", "{base}/config/small.yaml", "--out", "{out}"],
]
# On the command line, so that no broken configuration makes an honest training long.
_QUICK = ["--model", "faster_rcnn_tiny_fpn", "--epochs", "1", "--size", "64", "--workers", "0"]
VERBS = {
    "coco": _DATA,
    "voc": _DATA,
    "yolo": _DATA,
    "results": [["eval", "{base}/coco", "--predictions", "{file}", "--out", "{out}"]],
    "pictures": [["predict", "{file}", "--weights", "{base}/weights/tiny.safetensors", "--save", "{out}"]],
    "weights": [
        ["weights", "info", "{file}"],
        ["predict", "{base}/pictures/a.png", "--weights", "{file}", "--save", "{out}"],
    ],
    "pickles": [["weights", "convert", "{file}", "--out", "{out}"]],
    "config": [["data", "check", "--config", "{file}"], ["train", "--config", "{file}", *_QUICK, "--out", "{out}"]],
}
KINDS = tuple(VERBS)


def make(root: Path) -> None:
    """The sound files: scenes in three layouts, results, pictures in seven formats, weights, a configuration."""
    import torch
    import yaml
    from PIL import Image

    from twostage import Detector
    from twostage.data.convert import convert
    from twostage.data.scenes import NAMES, write_scenes

    write_scenes(root / "coco", train=3, val=2)
    for kind in ("voc", "yolo"):
        convert(root / "coco", root / kind, kind)
    for folder in ("results", "pictures", "weights", "pickles", "config"):
        (root / folder).mkdir()
    truth = json.loads((root / "coco" / "annotations" / "instances_val.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{key: one[key] for key in keys}, "score": 0.5} for one in truth]
    (root / "results" / "results.json").write_text(json.dumps(results))
    picture = Image.open(root / "coco" / "val" / "000000.jpg")
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        picture.save(root / "pictures" / f"a.{suffix}")
    small = {"rpn_top_test": 50, "rpn_keep_test": 20, "size": 64, "max_size": 64}
    Detector.build("faster_rcnn_tiny_fpn", NAMES, device="cpu", **small).save(root / "weights" / "tiny.safetensors")
    torch.save({"a.weight": torch.ones(4, 4), "a.bias": torch.ones(4)}, root / "pickles" / "a.pth")
    told: dict[str, Any] = {
        "data": str(root / "coco"),
        "model": "faster_rcnn_tiny_fpn",
        "epochs": 1,
        "size": 64,
        "workers": 0,
        "lr": 0.001,
        "scale": [0.8, 1.2],
        "schedule": "cosine",
        "model_fields": {"nms": 0.5},
    }
    (root / "config" / "told.yaml").write_text(yaml.safe_dump(told))
    (root / "config" / "small.yaml").write_text(yaml.safe_dump({k: v for k, v in told.items() if k != "data"}))


@contextlib.contextmanager
def broken(case: Case, breaking: Callable[[], None]) -> Iterator[None]:
    """The file broken, and put back."""
    content = case.file.read_bytes()
    try:
        breaking()
        yield
    finally:
        if case.file.is_dir() and not case.file.is_symlink():
            shutil.rmtree(case.file)
        else:
            case.file.unlink(missing_ok=True)
        case.file.write_bytes(content)


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` on the way may take it for a fault of the data."""


def fault_of(bench: Bench, number: int) -> tuple[str, str, int, str]:
    """What went wrong ("" where nothing), the case in words, the exit code and the messages."""
    from twostage.cli import main as command_line

    case, breaking = bench.case(number)
    output, messages = io.StringIO(), io.StringIO()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, fault = -1, ""
    with broken(case, breaking):
        signal.alarm(HANG)
        faulthandler.dump_traceback_later(2 * HANG, exit=True)  # where no Python code runs to hear the alarm
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
                code = command_line(case.words)
        except Hang:
            fault = "hang"
        except BaseException as error:  # the point is that none comes
            fault = f"traceback: {type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
    for left in (bench.root / "out",):
        shutil.rmtree(left, ignore_errors=True)
        left.unlink(missing_ok=True)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown)
    text = output.getvalue() + messages.getvalue()
    named = [case.file.name, case.file.stem, str(bench.root)]
    if not fault and ("internal error" in text or "Traceback" in text):
        fault = "internal error"
    if not fault and code not in CODES:
        fault = f"exit code {code}"
    if not fault and code != 0 and not any(name in text for name in named):
        fault = "unnamed"
    if not fault and grown > MEMORY:
        fault = f"{grown >> 20} MiB more"
    told = f"{number}: {case.how} {case.file.relative_to(bench.root)}: {' '.join(case.words)}"
    return fault, told, code, text


def work(root: Path, first: int, last: int) -> None:
    """In a process of its own: a line for each case."""

    def alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    bench = Bench(root)
    for number in range(first, last):
        fault, told, code, text = fault_of(bench, number)
        if fault == "hang":  # or was the machine busy? What hangs hangs twice.
            fault, told, code, text = fault_of(bench, number)
        print(json.dumps([number, fault, told, code, text[-600:] if fault else ""]), flush=True)


def main() -> int:
    """Run the cases, in a process that is begun anew where one of them kills it; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(Path(given.worker[0]), int(given.worker[1]), int(given.worker[2]))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "bench"
        root.mkdir()
        make(root)
        if given.only is not None:
            print(*fault_of(Bench(root), given.only), sep="\n")
            return 0
        return run(root, given)


def run(root: Path, given: argparse.Namespace) -> int:
    """All cases, and the report."""
    from _timing import finish, hardware, table

    started = time.monotonic()
    codes: Counter[int] = Counter()
    faults: list[str] = []
    number, last = given.first, given.first + given.cases
    while number < last:
        worker = [sys.executable, __file__, "--worker", str(root), str(number), str(last)]
        with subprocess.Popen(worker, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                number, fault, told, code, text = json.loads(line)
                codes[code] += 1
                if fault:
                    faults.append(f"{fault}: {told}")
                    print(faults[-1], text, sep="\n", file=sys.stderr, flush=True)
                number += 1
        if number < last:
            faults.append(f"the process died ({process.returncode}) in case {number}")
            print(faults[-1], file=sys.stderr, flush=True)
            number += 1
            shutil.rmtree(root)
            root.mkdir()
            make(root)
    meaning = {0: "done: the file still serves, or is left out", 2: "wrong usage", 3: "bad data", 4: "missing"}
    text = "\n\n".join(
        [
            "# Faulty inputs",
            f"`python benchmarks/faulty_inputs.py --cases {given.cases}`: {given.cases} cases in "
            f"{time.monotonic() - started:.0f} s; {len(faults)} with a traceback, a hang over {HANG} s, more than "
            "1 GiB of memory, or a message that names neither file nor data set.",
            hardware(),
            table(("exit code", "meaning", "cases"), [(c, meaning.get(c, ""), codes[c]) for c in sorted(codes)]),
            *faults,
        ]
    )
    finish(text, given.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
