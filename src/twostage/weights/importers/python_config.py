"""Settings in a Python file, as mmdetection's configurations are, read without running it: assigned literals."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twostage.errors import DataError

_BASE = "_base_"


def read_python_config(path: Path) -> dict[str, Any]:
    """The names that a file assigns, with those of its `_base_` files merged in. What is no literal is None.

    Raises DataError for a file that cannot be read or is no Python.
    """
    try:
        return _of_text(path.read_text(encoding="utf-8"), path.parent)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a configuration in Python ({error}).") from None


def parse_python_config(text: str) -> dict[str, Any]:
    """The same of a text, as training leaves it in a checkpoint, with all bases merged. Raises SyntaxError."""
    return _of_text(text, None)


def _of_text(text: str, folder: Path | None) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                own[target.id] = _value(statement.value, own)
    base = own.pop(_BASE, None) or ()
    merged: dict[str, Any] = {}
    for name in [base] if isinstance(base, str) else base:
        if folder is not None:
            merged = _merged(merged, read_python_config(folder / str(name)))
    return _merged(merged, own)


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A literal, `dict(...)` of literals, or a name that was assigned before."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, known) for each in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key, known): _value(value, known) for key, value in pairs if key is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {each.arg: _value(each.value, known) for each in node.keywords if each.arg is not None}
    return _number(node, known)


def _number(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Negative numbers and quotients."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, known)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Mult):
        left, right = _value(node.left, known), _value(node.right, known)
        if isinstance(left, int | float) and isinstance(right, int | float) and right:
            return left / right if isinstance(node.op, ast.Div) else left * right
    return None


def _merged(base: Any, own: Any) -> Any:
    """Dictionaries key by key; `_delete_` replaces the whole."""
    if not isinstance(base, dict) or not isinstance(own, dict) or own.get("_delete_"):
        return {key: value for key, value in own.items() if key != "_delete_"} if isinstance(own, dict) else own
    return base | {key: _merged(base.get(key), value) for key, value in own.items()}
