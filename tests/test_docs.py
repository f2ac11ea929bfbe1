"""The guide points at code that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("recipes/*.md")])
LINK = re.compile(r"\[([^\[\]]+)\]\(([^)#]+)[^)]*\)")
CODE = re.compile(r"`([^`]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_names_that_are_there(page: Path) -> None:
    wrong = []
    for words, target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = page.parent / target
        if not path.exists():
            wrong.append(f"{target}: no such file")
        elif path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            wrong += [f"{target}: no {name}" for name in CODE.findall(words) if not is_there(name, path, text)]
    assert not wrong


def is_there(name: str, path: Path, text: str) -> bool:
    """Whether the file is the one that is named, or defines the name; `PreparedModel.detect` is a method."""
    if name.endswith((".py", ".md")):
        return path.as_posix().endswith(name)
    *owner, last = name.split(".")
    return re.search(rf"^{' +' if owner else ''}(def|class) {last}\b|^{last}\b", text, re.MULTILINE) is not None
