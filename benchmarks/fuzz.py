"""Looks for bytes that a reader neither reads nor refuses, guided by coverage.

    pip install atheris
    python benchmarks/fuzz.py --minutes 60 --out benchmarks/results/fuzz.md

The minutes are shared by the readers of `tests/readers.py`, one after the other. A traceback, a read of more than 10
seconds or more than 2 GiB of memory is a finding: its bytes are kept under `tests/seeds/READER/`, where
`tests/test_readers.py` tries them ever after.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")  # a file is written for every input
TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))


def main() -> int:
    """Fuzz all readers, or be the process that fuzzes one; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--readers", nargs="+", help="by default all")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from _timing import finish, hardware, table
    from readers import READERS

    chosen = given.readers or list(READERS)
    rows, found = [], 0
    for name in chosen:
        runs, covered, findings = fuzzed(name, 60 * given.minutes / len(chosen))
        rows.append([name, runs, covered, len(findings)])
        found += len(findings)
        for content in findings:
            place = TESTS / "seeds" / name / hashlib.sha256(content).hexdigest()[:12]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    text = "\n".join(
        [
            "# Fuzzed readers",
            "",
            f"`python benchmarks/fuzz.py --minutes {given.minutes:g}`: {found} findings (a traceback, over 10 s, or "
            "over 2 GiB).",
            "",
            hardware(),
            "",
            table(["reader", "inputs", "edges covered", "findings"], rows),
        ]
    )
    finish(text, given.out)
    return int(found > 0)


def fuzzed(name: str, seconds: float) -> tuple[str, str, list[bytes]]:
    """How many inputs were tried, how many edges they covered, and those at which a reader failed."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        root = Path(scratch)
        corpus, findings = root / "corpus", root / "findings"
        corpus.mkdir()
        findings.mkdir()
        runs, covered, left = 0, "", seconds
        while left > 1:
            limits = [f"-max_total_time={left:.0f}", "-timeout=10", "-rss_limit_mb=2560", "-max_len=4096"]
            command = [sys.executable, __file__, "--one", name, str(root), *limits, f"-artifact_prefix={findings}/"]
            before = len(list(findings.iterdir()))
            started = os.times().elapsed
            log = subprocess.run([*command, str(corpus)], capture_output=True, text=True, check=False).stderr
            left -= os.times().elapsed - started
            counts = re.findall(r"#(\d+)\s+\w+\s+(?:cov: (\d+))?", log)
            runs += max((int(count) for count, _ in counts), default=0)
            covered = next((edges for _, edges in reversed(counts) if edges), covered)
            if len(list(findings.iterdir())) == before:
                if left > 2 and "ERROR: libFuzzer" not in log:
                    raise RuntimeError(f"{name}: the fuzzer ended early:\n{log[-3000:]}")
                break  # the time is over, or it meets the same fault again: that is to be mended first
            print(f"{name}: {log[-1500:]}", file=sys.stderr)  # libFuzzer ends at the first finding: go on with the rest
        return str(runs), covered, [path.read_bytes() for path in sorted(findings.iterdir())]


def fuzz_one(name: str, root: Path, arguments: list[str]) -> None:
    """Within libFuzzer's process."""
    import atheris

    with atheris.instrument_imports(include=["twostage", "yaml", "xml"]):
        from readers import PICTURES, READERS, make_sound, must_be_read_or_refused
    if not (root / "sound").exists():
        (root / "sound").mkdir()
        make_sound(root / "sound")
        sound = root / "sound" / READERS[name].file
        for path in [sound, *(root / "sound" / f"a.{suffix}" for suffix in PICTURES if name == "picture")]:
            (root / "corpus" / path.name).write_bytes(path.read_bytes())
    atheris.Setup(
        [sys.argv[0], *arguments], lambda content: must_be_read_or_refused(name, root / "sound", bytes(content))
    )
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz_one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    sys.exit(main())
