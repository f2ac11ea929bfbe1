"""The guide points at code that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("recipes/*.md")])
LINK = re.compile(r"\[(`?)([^\]`]+)`?\]\(([^)#]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_names_that_are_there(page: Path) -> None:
    wrong = []
    for code, name, target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = page.parent / target
        if not path.exists():
            wrong.append(f"{target}: no such file")
        elif code and path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            if not re.search(rf"^(def|class) {name}\b|^{name}\b", text, re.MULTILINE):
                wrong.append(f"{target}: no {name}")
    assert not wrong
