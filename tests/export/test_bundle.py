"""`predict.py`, which stands beside an exported file: one file for a machine without torch and without twostage."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from twostage.export.bundle import bundle
from twostage.inference import standalone

ISOLATED = """
import runpy, sys
for name in ("torch", "twostage", "jaxtyping", "torchvision", "onnxruntime", "openvino"):
    sys.modules[name] = None  # what is None cannot be imported
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def tree() -> ast.Module:
    return ast.parse(bundle())


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """The names that statements of a module bind."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (each.asname or each.name.split(".")[0] for each in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            yield from (each.id for each in names)


def test_no_name_has_two_meanings(tree: ast.Module) -> None:
    """Modules are put behind each other: a name of two of them would be the later one's in both."""
    counts = Counter(defined(tree.body))
    assert {"Predictor", "bilinear", "paste", "by_opencv", "compress", "resized_shape", "np"} <= set(counts)
    assert not {name for name, count in counts.items() if count > 1}


def test_every_name_that_is_read_is_there(tree: ast.Module) -> None:
    """Annotations are not evaluated, so that types which went may be named in them alone."""
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if part is not None
        for inner in ast.walk(part)
    }
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in annotations]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | set(defined(tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            bound.add(node.name)
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            bound |= {each.arg for each in every if each is not None}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.Import):
            bound |= {each.asname or each.name for each in node.names}
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    assert (
        not read
        - bound
        - set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
        - {
            "__file__",
            "__name__",
        }
    )


def test_it_imports_numpy_pillow_and_within_functions_a_runtime(tree: ast.Module) -> None:
    def roots(nodes: list[ast.stmt] | Iterator[ast.AST]) -> set[str]:
        found = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {each.name.split(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                found.add((node.module or "").split(".")[0])
        return found

    assert roots(tree.body) - set(sys.stdlib_module_names) == {"numpy", "PIL"}
    assert roots(ast.walk(tree)) - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime", "openvino"}


def test_it_begins_with_how_it_is_used_and_computes_by_the_code_of_the_package(tree: ast.Module) -> None:
    assert ast.get_docstring(tree) == ast.get_docstring(
        ast.parse(Path(str(standalone.__file__)).read_text(encoding="utf-8"))
    )
    own = {node.name: ast.dump(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    checked = 0
    for module in ("data/interpolation", "data/resize_geometry", "data/uint8_resize", "ops/paste", "ops/run_lengths"):
        path = Path(str(standalone.__file__)).parents[1] / f"{module}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                assert own[node.name] == ast.dump(node)
                checked += 1
    assert checked > 15


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python predict.py ...` where neither torch nor twostage nor a runtime is installed."""
    path = folder / "predict.py"
    path.write_text(bundle(), encoding="utf-8")
    code = ISOLATED.format(arguments=[str(path), *arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_its_help_needs_no_runtime(tmp_path: Path) -> None:
    run = run_alone(tmp_path, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert "--conf" in run.stdout
    assert "Detect objects in images with an exported detector." in run.stdout


@pytest.mark.parametrize(("name", "package"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino")])
def test_a_missing_runtime_is_named_with_the_command_that_brings_it(tmp_path: Path, name: str, package: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    run = run_alone(tmp_path, "photo.jpg")
    assert (run.returncode, run.stdout) == (4, "")
    assert run.stderr == f"{tmp_path / name}: {package} is not installed: pip install {package}\n"


def test_without_a_model_beside_it_one_has_to_be_given(tmp_path: Path) -> None:
    run = run_alone(tmp_path, "photo.jpg")
    assert run.returncode == 3
    assert "no model.onnx or model.xml here. Give one with --model." in run.stderr
    other = run_alone(tmp_path, "photo.jpg", "--model", "model.pt2")
    assert other.returncode == 3
    assert "model.pt2: no such file" in other.stderr
