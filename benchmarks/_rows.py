"""The rows of a long benchmark, kept after every run: an interrupted one goes on with what it has."""

import json
from pathlib import Path
from typing import Any

from _timing import hardware


def read_rows(out: Path | None, name: str) -> list[dict[str, Any]]:
    """What `write_rows` wrote into the folder; nothing without one."""
    file = out / f"{name}.json" if out else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []


def write_rows(out: Path, name: str, rows: list[dict[str, Any]], title: str, about: str, table: str) -> None:
    """The table with its hardware as NAME.md, and every row as NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text("\n\n".join([f"# {title}", about, hardware(), table]) + "\n", encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
