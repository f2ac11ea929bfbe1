"""Settings in a Python file, as mmdetection's configurations are, read without running it: assigned literals."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twostage.errors import DataError

_BASE = "_base_"
_RUN = object()  # in the place of a value that only running the file would give


def read_python_config(path: Path) -> dict[str, Any]:
    """The names that a file assigns, with those of its `_base_` files merged in.

    What is no literal counts as not given: that of a base stays. Raises DataError for a file that cannot be read or is
    no Python, and for one that changes `model` or a pipeline otherwise than by assigning it.
    """
    try:
        return _of_text(path.read_text(encoding="utf-8-sig"), path.parent)
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as a configuration in Python ({error}).") from None


def parse_python_config(text: str) -> dict[str, Any]:
    """The same of a text, as training leaves it in a checkpoint, with all bases merged. Raises as the former."""
    try:
        return _of_text(text, None)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"the configuration beside the weights cannot be read ({error})") from None


def _of_text(text: str, folder: Path | None) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                own[target.id] = _value(statement.value, own)
                continue
        changed = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if not isinstance(statement, ast.FunctionDef) and changed & {"model", "test_pipeline", "test_cfg"}:
            raise ValueError(
                f"line {statement.lineno} changes a setting otherwise than by assigning it; give the whole "
                "configuration that training wrote into its folder"
            )
    base = own.pop(_BASE, None) or ()
    merged: dict[str, Any] = {}
    for name in [base] if isinstance(base, str) else base:
        if folder is not None:
            merged = _merged(merged, read_python_config(folder / str(name)))
    return _given(_merged(merged, own))


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A literal, `dict(...)` of literals, or a name that was assigned before."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, _RUN)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, known) for each in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _value(key, known) for key in node.keys]
        return _entries(list(zip(keys, node.values, strict=True)), known)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return _entries([(each.arg, each.value) for each in node.keywords], known)
    return _number(node, known)


def _entries(pairs: list[tuple[Any, ast.expr]], known: Mapping[str, Any]) -> dict[Any, Any]:
    """Of a dictionary; one without a key is `**other`."""
    entries: dict[Any, Any] = {}
    for key, node in pairs:
        value = _value(node, known)
        entries |= {key: value} if key is not None else value if isinstance(value, dict) else {}
    return entries


def _number(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Negative numbers and quotients."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, known)
        return -value if isinstance(value, int | float) else _RUN
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Mult):
        left, right = _value(node.left, known), _value(node.right, known)
        if isinstance(left, int | float) and isinstance(right, int | float) and right:
            return left / right if isinstance(node.op, ast.Div) else left * right
    return _RUN


def _merged(base: Any, own: Any) -> Any:
    """Dictionaries key by key; `_delete_` replaces the whole."""
    if own is _RUN:
        return base
    if not isinstance(base, dict) or not isinstance(own, dict) or own.get("_delete_"):
        return {key: value for key, value in own.items() if key != "_delete_"} if isinstance(own, dict) else own
    return base | {key: _merged(base.get(key, _RUN), value) for key, value in own.items()}


def _given(value: Any) -> Any:
    """Without what only running the file would give; None in lists."""
    if isinstance(value, dict):
        return {key: _given(each) for key, each in value.items() if each is not _RUN}
    if isinstance(value, list):
        return [None if each is _RUN else _given(each) for each in value]
    return value
