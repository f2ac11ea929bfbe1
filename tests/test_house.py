"""The walls of the house (DESIGN, section 2): who may import whom, and what the start of the command line costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "twostage"
MODULES = sorted(SOURCE.rglob("*.py"))

# The rooms from the ground up: a module may import its own floor and those below.
FLOORS = (
    {
        *("errors", "options", "common_options", "run_config", "kinds", "atomic", "folders", "shell"),
        *("environment", "download", "progress", "device", "distributed", "fonts", "box_notations"),
    },
    {"ops", "data"},
    {"drawing", "detections"},
    {"models"},
    {"training", "evaluation", "inference", "weights"},
    {"inspection"},
    {"detector"},
    {"parity"},
    {"serving", "export", "experiments"},
    {"cli", "__main__"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, and whether it does so at its own import (not within a function, nor for types)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_import = set(statements_at_import(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in at_import
            if node.module == "twostage":
                yield from ((f"twostage.{alias.name}", node in at_import) for alias in node.names)


def statements_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements_at_import(child)


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name, _ in imports_of(path))
    return {parts[1] for parts in names if parts[0] == "twostage" and len(parts) > 1 and parts[1] in FLOOR}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_downwards(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return
    assert room_of(path) in FLOOR, f"{path} stands in no room of the house: name it in FLOORS"
    above = {room for room in rooms_imported(path) if FLOOR[room] > FLOOR[room_of(path)]}
    assert not above, f"{path.relative_to(SOURCE)} imports {sorted(above)}, which stand above it"


def test_rooms_of_one_floor_import_each_other_in_one_direction_only() -> None:
    neighbours = {room: set() for room in FLOOR}
    for path in MODULES:
        room = room_of(path)
        if room in FLOOR:
            neighbours[room] |= {other for other in rooms_imported(path) if FLOOR[other] == FLOOR[room]} - {room}
    for room, others in neighbours.items():
        seen, ahead = set(), set(others)
        while ahead:
            seen |= ahead
            ahead = {further for other in ahead for further in neighbours[other]} - seen
        assert room not in seen, f"{room} imports itself by way of {sorted(seen)}"


def test_torchvision_is_imported_within_functions_only() -> None:
    """Predict runs without it, so nothing may bring it in unasked."""
    eager = [str(path) for path in MODULES for name, now in imports_of(path) if now and name.startswith("torchvision")]
    assert not eager


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_no_module_is_longer_than_a_sitting() -> None:
    files = [*MODULES, *SOURCE.rglob("*.js")]
    long = {str(path): n for path in files if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_library_prints_nothing() -> None:
    printing = [
        f"{path}:{node.lineno}"
        for path in MODULES
        if room_of(path) != "cli" and path.name != "standalone.py"  # a program of its own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_no_committed_file_knows_this_machine() -> None:
    root = SOURCE.parents[1]
    here = [*MODULES, *root.glob("tests/**/*.py"), *root.glob("benchmarks/**/*.py"), *root.glob("docs/**/*.md")]
    here += [root / name for name in ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
    words = ["/".join(parts) for parts in (("..", "shared"), ("", "work", ""), ("", "opt", ""), ("", "root", ""))]
    found = [f"{path}: {word}" for path in here for word in words if word in path.read_text(encoding="utf-8")]
    assert not found


def modules_loaded_by(code: str) -> set[str]:
    """The top-level packages a fresh interpreter holds after running `code`."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.split(".")[0] for line in run.stderr.splitlines()}


HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "faster_coco_eval"}


def test_import_of_the_package_is_cheap() -> None:
    assert not modules_loaded_by("import twostage") & (HEAVY | {"cyclopts", "rich", "yaml"})


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        ["data", "audit", "--help"],
        *([verb, "--help"] for verb in ("train", "eval", "predict", "inspect", "demo")),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not modules_loaded_by(f"from twostage.cli import main; assert main({arguments!r}) == 0") & HEAVY


def test_every_training_option_is_read() -> None:
    """A flag that does nothing is worse than none. The longest side is read within `given_fields`."""
    from dataclasses import fields

    from twostage.training.options import TrainOptions
    from twostage.training.recipe import Recipe

    text = "".join(path.read_text(encoding="utf-8") for path in MODULES if room_of(path) == "training")
    recipe = {each.name for each in fields(Recipe)}
    unread = {each.name for each in fields(TrainOptions) if f"options.{each.name}" not in text} - recipe
    assert unread == {"max_size"}
    assert "options.given_fields" in text
