"""The rows of a long benchmark, kept after every run: an interrupted one goes on with what it has."""

import json
import re
from pathlib import Path
from typing import Any

from _timing import hardware


def read_rows(out: Path | None, name: str) -> list[dict[str, Any]]:
    """What `write_rows` wrote into the folder; nothing without one."""
    file = out / f"{name}.json" if out else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []


def write_rows(out: Path, name: str, rows: list[dict[str, Any]], title: str, about: str, table: str) -> None:
    """The table with its hardware as NAME.md, and every row as NAME.json."""
    keep_rows(out, name, rows)
    (out / f"{name}.md").write_text("\n\n".join([f"# {title}", about, hardware(), table]) + "\n", encoding="utf-8")


def keep_rows(out: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Every row as NAME.json in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_section(page: Path, title: str, heading: str, about: str, table: str) -> None:
    """The table with its hardware as a section of a page, in place of that with the same heading; others stay."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n\n"
    before, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    own = "\n\n".join([heading, about, hardware(), table]) + "\n\n"
    names = [section.partition("\n")[0] for section in sections]
    place = names.index(heading) if heading in names else len(names)
    sections[place : place + 1] = [own]
    page.write_text("## ".join([before, *sections]).rstrip("\n") + "\n", encoding="utf-8")
