"""Does a download that is interrupted again and again end with the right file? 160 MB from a server on this machine.

    python benchmarks/download.py --out benchmarks/results/download.md

Ten times the connection breaks at a random byte within one call; then ten times the process that fetches is killed at a
random moment and begun again; then one byte is wrong.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from _timing import finish, hardware, table

from twostage.download import download
from twostage.errors import MissingError

SIZE = 160_000_000
BLOCK = 1 << 18
TIMES = 10
FETCH = (
    "import sys; from pathlib import Path; from twostage.download import download; url, path, digits = sys.argv[1:]; "
)
FETCH += "download(url, Path(path), digits)"


def main() -> int:
    """Interrupt, compare, report; 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    content = moments.randbytes(SIZE)
    digits = hashlib.sha256(content).hexdigest()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "file"
        with served(content, breaks=[moments.randrange(SIZE // TIMES) for _ in range(TIMES)]) as server:
            download(server.url, path, digits)
            rows.append(row("connection broken", server.answers - 1, path.read_bytes() == content))
        path.unlink()
        with served(content, breaks=[], pause=0.005) as server:
            kills = 0
            while not path.exists():
                fetching = subprocess.Popen([sys.executable, "-c", FETCH, server.url, str(path), digits])
                if kills < TIMES:
                    before = size_of(path.with_name("file.part"))
                    while fetching.poll() is None and size_of(path.with_name("file.part")) == before:
                        time.sleep(0.001)
                    time.sleep(moments.uniform(0, 0.2))
                    os.kill(fetching.pid, signal.SIGKILL)
                    kills += 1
                fetching.wait()
            rows.append(row("process killed", kills, path.read_bytes() == content))
        path.unlink()
        wrong = bytearray(content)
        wrong[moments.randrange(SIZE)] ^= 1
        with served(bytes(wrong), breaks=[]) as server:
            try:
                download(server.url, path, digits)
                refused = False
            except MissingError as error:
                refused = "another file" in str(error) and not path.exists()
        rows.append(["one wrong byte", "-", "refused, and removed" if refused else "TAKEN"])
    text = "\n".join(
        [
            "# An interrupted download",
            "",
            f"`python benchmarks/download.py`: {SIZE // 10**6} MB from a server on the same machine.",
            "",
            hardware(),
            "",
            table(["interrupted by", "times", "end"], rows),
        ]
    )
    finish(text, given.out)
    return int(any(line[2] in ("DIFFERENT", "TAKEN") for line in rows))


def row(what: str, times: int, equal: bool) -> list[str]:
    """A line of the table."""
    return [what, str(times), "the right file" if equal else "DIFFERENT"]


def size_of(path: Path) -> int:
    """0 where there is none."""
    return path.stat().st_size if path.exists() else 0


class Served:
    """A file on 127.0.0.1, and how many requests it has answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers = 0


@contextmanager
def served(content: bytes, *, breaks: list[int], pause: float = 0.0) -> Iterator[Served]:
    """Each answer ends after the next number of bytes in `breaks`; `pause` seconds lie between blocks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answers += 1
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = begin + breaks.pop(0) if breaks else len(content)
            try:
                for first in range(begin, end, BLOCK):
                    self.wfile.write(content[first : min(first + BLOCK, end)])
                    time.sleep(pause)
            except OSError:
                pass  # the reader was killed

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Served(f"http://127.0.0.1:{server.server_port}/file")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
