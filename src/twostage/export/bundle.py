"""`predict.py`, the single file beside an export: `inference.standalone` together with the modules that it imports.

Those modules need numpy and Pillow alone. So the file computes by the same code as twostage, and has no copy of it.
"""

import ast
import importlib.util
from pathlib import Path

_MAIN = "twostage.inference.standalone"
_PACKAGES = ("numpy", "PIL")
_TYPES_ONLY = "jaxtyping"  # shapes in annotations, which are not evaluated there


def bundle() -> str:
    """The text of `predict.py`."""
    main = _read(_MAIN)
    parts = [_read(name) for name in _imported(main)]
    head, body = _docstring(main), [*(_titled(part) for part in parts), _body(main)]
    imports = ["from __future__ import annotations", "", *_imports([main, *parts])]
    return "\n".join([head, "", *imports, "", "", "\n\n\n".join(body), ""])


def _read(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _imported(text: str) -> list[str]:
    """Our modules that a module imports, and those that they import, each before it is used."""
    names: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twostage."):
            assert node.module is not None
            names += [*_imported(_read(node.module)), node.module]
    return list(dict.fromkeys(names))


def _imports(texts: list[str]) -> list[str]:
    """Their imports of other packages: the standard library's, an empty line, the others'."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in (node for text in texts for node in ast.parse(text).body):
        if isinstance(node, ast.Import):
            plain |= {f"{each.name}{f' as {each.asname}' if each.asname else ''}" for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("twostage", _TYPES_ONLY)):
            names.setdefault(node.module or "", set()).update(each.name for each in node.names)
    lines = [f"import {name}" for name in sorted(plain)]
    lines += [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    others = [line for line in lines if line.split()[1].split(".")[0] in _PACKAGES]
    return [*(line for line in lines if line not in others), "", *others]


def _docstring(text: str) -> str:
    return _lines(text, ast.parse(text).body[0])


def _titled(text: str) -> str:
    """The body of a module below its docstring as a comment."""
    title = ast.get_docstring(ast.parse(text)) or ""
    return "\n".join([*(f"# {line}".rstrip() for line in title.splitlines()), "", "", _body(text)])


def _body(text: str) -> str:
    """Everything after the imports, with its comments; names that are types alone go."""
    lines, nodes = text.splitlines(), ast.parse(text).body
    last = max(
        (node.end_lineno or 0 for node in nodes[1:] if isinstance(node, ast.Import | ast.ImportFrom)),
        default=nodes[0].end_lineno or 0,
    )
    typed = [node for node in nodes if isinstance(node, ast.Assign) and _is_type(node.value)]
    gone = {number for node in typed for number in range(node.lineno, (node.end_lineno or 0) + 1)}
    return "\n".join(line for number, line in enumerate(lines, 1) if number > last and number not in gone).strip()


def _is_type(value: ast.expr) -> bool:
    """Whether a value is made of annotations of shapes, which need `jaxtyping`."""
    return any(
        isinstance(node, ast.Name) and node.id.startswith(("UInt", "Float", "Int", "Bool")) for node in ast.walk(value)
    )


def _lines(text: str, node: ast.stmt) -> str:
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
