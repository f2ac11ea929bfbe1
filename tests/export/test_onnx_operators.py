"""Our operators as ONNX graphs give what our kernels and torchvision's give, at shapes they were not traced with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision.ops as tv
from torch import Tensor, nn

from twostage.export.onnx_file import OPSET
from twostage.export.onnx_operators import TRANSLATIONS
from twostage.export.openvino_file import openvino_model
from twostage.export.program import quiet
from twostage.inference.runtimes import import_openvino
from twostage.ops.best import best
from twostage.ops.nms import nms
from twostage.ops.roi_align import roi_align
from twostage.ops.roi_pool import roi_pool
from twostage.ops.soft_nms import soft_nms

IOU, TOP = 0.5, 12
SCALES = (1 / 4, 1 / 8, 1 / 16)
FREE = torch.export.Dim.DYNAMIC


# Faults that are known.
NO_AREA = pytest.mark.xfail(strict=True, reason="OpenVINO divides by the 0 samples of a box without area")

both = pytest.mark.parametrize("runtime", ["onnx", "openvino"])


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Runtimes(NamedTuple):
    """An ONNX file in ONNX Runtime, and in OpenVINO."""

    path: Path
    inputs: tuple[str, ...]

    def run(self, runtime: str, *tensors: Tensor) -> list[Tensor]:
        return {"onnx": self._onnx, "openvino": self._openvino}[runtime](*tensors)

    def _onnx(self, *tensors: Tensor) -> list[Tensor]:
        session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        return [torch.from_numpy(array) for array in session.run(None, self._named(tensors))]

    def _openvino(self, *tensors: Tensor) -> list[Tensor]:
        model = openvino_model(self.path)
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = import_openvino("a test").Core().compile_model(model, "CPU", hints)
        found = compiled(self._named(tensors))
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    def _named(self, tensors: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        given = {name: tensor.contiguous().numpy() for name, tensor in zip(self.inputs, tensors, strict=True)}
        used = {each.name for each in onnx.load(self.path).graph.input}
        return {name: array for name, array in given.items() if name in used}


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Runtimes]:
    """Exports a function of tensors, all of whose listed dimensions are open, as `export.onnx_file` does."""

    def export(function: Callable[..., Any], example: tuple[Tensor, ...], *free: tuple[int, ...]) -> Runtimes:
        names = tuple(f"input{k}" for k in range(len(example)))
        with quiet(), torch.no_grad():
            program = torch.export.export(
                Call(function).eval(),
                example,
                dynamic_shapes={"inputs": tuple(dict.fromkeys(axes, FREE) for axes in free)},
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            converted = torch.onnx.export(
                program,
                dynamo=True,
                custom_translation_table=TRANSLATIONS,
                opset_version=OPSET,
                input_names=list(names),
                optimize=True,
                verbose=False,
            )
        assert converted is not None
        path = tmp_path / "operator.onnx"
        converted.save(path)
        return Runtimes(path, names)

    return export


class Boxes(NamedTuple):
    """What suppression takes: boxes, scores, groups and validity."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    valid: Tensor

    def taken(self, grouped: bool) -> tuple[Tensor, ...]:
        return tuple(self) if grouped else (self.boxes, self.scores, self.valid)


def crowd(n: int, m: int, seed: int, *, steps: int = 0) -> Boxes:
    """Boxes that overlap a lot, a fifth not valid; with `steps` so few different scores that many are equal."""
    g = torch.Generator().manual_seed(seed)
    corners = (torch.rand(n, m, 2, generator=g) * 60).round()
    boxes = torch.cat([corners, corners + (torch.rand(n, m, 2, generator=g) * 40).round()], dim=-1)
    scores = torch.rand(n, m, generator=g) * 0.98 + 0.01
    if steps:
        scores = (scores * steps).ceil() / steps
    return Boxes(boxes, scores, torch.randint(0, 4, (n, m), generator=g), torch.rand(n, m, generator=g) > 0.2)


def edge_cases() -> dict[str, Boxes]:
    """Where a graph of fixed shapes is most easily wrong."""
    whole = crowd(3, 30, 5)
    alone = whole.valid & (torch.arange(30) == 7)
    one_image = whole.valid.clone()
    one_image[1] = False
    flat = whole.boxes.clone()
    flat[:, ::2, 2:] = flat[:, ::2, :2]  # without area
    same = whole.boxes[:, :1].expand(-1, 30, -1).contiguous()
    return {
        "one image": crowd(1, 25, 1),
        "three images": crowd(3, 40, 2),
        "more boxes than traced with": crowd(3, 90, 3),
        "fewer boxes than top": crowd(3, 5, 4),
        "one box": crowd(2, 1, 4),
        "no valid box": whole._replace(valid=torch.zeros_like(whole.valid)),
        "no valid box in one of three images": whole._replace(valid=one_image),
        "one valid box": whole._replace(valid=alone),
        "boxes without area": whole._replace(boxes=flat),
        "one place": whole._replace(boxes=same),
        "one place without area": whole._replace(boxes=same[..., [0, 1, 0, 1]].contiguous()),
        "the highest group in the last column alone": whole._replace(
            groups=torch.nn.functional.one_hot(torch.full((3,), 29), 30) * 9, valid=torch.ones_like(whole.valid)
        ),
    }


def with_ties() -> dict[str, Boxes]:
    """Few different scores, and one alone: more equal ones than places."""
    few = crowd(3, 90, 3, steps=5)
    return {"few": few, "one": few._replace(scores=torch.full((3, 90), 0.5)), "two": crowd(2, 20, 6, steps=2)}


def suppress(grouped: bool, iou: float = IOU) -> Callable[..., tuple[Tensor, ...]]:
    def run(boxes: Tensor, scores: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        groups, valid = rest if grouped else (None, rest[0])
        return tuple(nms(boxes, scores, groups, valid, iou=iou, top=TOP))

    return run


def torchvisions(given: Boxes, grouped: bool, iou: float = IOU) -> list[Tensor]:
    """What `torchvision.ops.batched_nms` keeps of each image, the best TOP in order of their scores and places."""
    kept = []
    for boxes, scores, groups, valid in zip(*given, strict=True):
        some = valid.nonzero()[:, 0]
        found = tv.batched_nms(boxes[some], scores[some], groups[some] if grouped else torch.zeros_like(some), iou)
        index = some[found].sort().values
        kept.append(index[scores[index].sort(descending=True, stable=True).indices][:TOP])
    return kept


@pytest.mark.slow
@both
@pytest.mark.parametrize("grouped", [False, True])
def test_nms(export: Callable[..., Runtimes], grouped: bool, runtime: str) -> None:
    run = suppress(grouped)
    file = export(run, crowd(2, 30, 0).taken(grouped), *[(0, 1)] * (4 if grouped else 3))
    suppressed = 0
    for name, given in edge_cases().items():
        expected = run(*given.taken(grouped))
        suppressed += int((given.valid.sum(dim=1).clamp(max=TOP) - expected[1].sum(dim=1)).sum())
        found = file.run(runtime, *given.taken(grouped))
        # The index of padding too: it is gathered with.
        assert all(map(torch.equal, found, expected)), name
        for image, kept in enumerate(torchvisions(given, grouped)):
            assert torch.equal(found[0][image, found[1][image]], kept), name
    assert suppressed > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "part", "whole"),
    [
        *(("onnx", *share) for share in ((1, 2), (1, 3), (3, 5), (7, 10))),
        *(("openvino", *share) for share in ((1, 3), (3, 5))),
        *(pytest.param("openvino", *share) for share in ((1, 2), (7, 10))),
    ],
)
def test_boxes_that_overlap_by_the_threshold(
    export: Callable[..., Runtimes], part: int, whole: int, runtime: str
) -> None:
    """Both are kept, also where no float32 equals the threshold; of two that overlap a little more, one."""
    iou = part / whole
    file = export(suppress(False, iou), crowd(2, 30, 0).taken(False), *[(0, 1)] * 3)
    large = [0.0, 0.0, 30.0 * whole, 8.0]
    equal, more = [0.0, 0.0, 30.0 * part, 8.0], [0.0, 0.0, 30.0 * part + 0.01, 8.0]
    boxes = torch.tensor([[large, equal], [large, more]])
    given = Boxes(boxes, torch.tensor([[0.9, 0.8]] * 2), torch.zeros(2, 2).long(), torch.ones(2, 2, dtype=torch.bool))
    _, valid, _ = file.run(runtime, *given.taken(False))
    kept = [len(each) for each in torchvisions(given, False, iou)]
    assert valid.sum(dim=1).tolist() == kept
    assert kept[1] == 1


def decay(method: Any, grouped: bool) -> Callable[..., tuple[Tensor, ...]]:
    def run(boxes: Tensor, scores: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        groups, valid = rest if grouped else (None, rest[0])
        settings = {"method": method, "top": TOP, "iou": 0.3, "sigma": 0.5, "min_score": 0.05}
        return tuple(soft_nms(boxes, scores, groups, valid, **settings))

    return run


@pytest.mark.slow
@both
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms(export: Callable[..., Runtimes], method: str, grouped: bool, runtime: str) -> None:
    run = decay(method, grouped)
    file = export(run, crowd(2, 30, 0).taken(grouped), *[(0, 1)] * (4 if grouped else 3))
    decayed = 0
    for name, given in edge_cases().items():
        index, scores, valid = run(*given.taken(grouped))
        decayed += int((scores < given.scores.gather(1, index) - 0.01)[valid].sum())
        found = file.run(runtime, *given.taken(grouped))
        assert torch.equal(found[2], valid), name
        assert torch.equal(found[0], index), name
        torch.testing.assert_close(found[1], scores, rtol=1e-5, atol=1e-6)
    assert decayed


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["nms", "linear", "gaussian", "best"])
def test_of_equal_scores_the_first_is_taken(export: Callable[..., Runtimes], operator: str) -> None:
    """The standard has the lower index first. OpenVINO's stable TopK does too, and takes a thousand times as long."""

    def first(boxes: Tensor, scores: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return tuple(best(scores, valid, top=TOP))

    run = {"nms": suppress(False), "best": first}.get(operator) or decay(operator, False)
    file = export(run, crowd(2, 30, 0).taken(False), *[(0, 1)] * 3)
    for name, given in with_ties().items():
        expected = run(*given.taken(False))
        found = file.run("onnx", *given.taken(False))
        index, valid = found[0], expected[-1] if operator in ("linear", "gaussian", "best") else expected[1]
        assert torch.equal(index[valid], expected[0][valid]), name


def a_pyramid(n: int, height: int, width: int, levels: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, height >> k, width >> k, generator=g) for k in range(levels)]


def regions(n: int, p: int, seed: int) -> Tensor:
    """Large, smaller than a cell, without area, and across the border, on maps of 160 x 224 pixels."""
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, p, 2, generator=g) * torch.tensor([200.0, 140.0]) - 8
    boxes = torch.cat([corners, corners + 120 * torch.rand(n, p, 2, generator=g) ** 3], dim=-1)
    boxes[:, 0, 2:] = boxes[:, 0, :2]
    boxes[:, 1] = torch.tensor([10.0, 12.0, 11.0, 13.5])
    boxes[:, 2] = torch.tensor([0.0, 0.0, 224.0, 160.0])
    return boxes


def level_of(n: int, p: int, below: int) -> Tensor:
    return torch.randint(0, below, (n, p), generator=torch.Generator().manual_seed(3))


WAYS = [(2, False, 1), (2, True, 3), (1, True, 1), (1, False, 3), (0, False, 3), (0, True, 1), (0, True, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "ratio", "aligned", "levels"),
    [
        *(("onnx", *way) for way in WAYS),
        *(("openvino", *way) for way in WAYS[:5]),
        *(pytest.param("openvino", *way, marks=NO_AREA) for way in WAYS[5:]),
    ],
)
def test_roi_align(export: Callable[..., Runtimes], ratio: int, aligned: bool, levels: int, runtime: str) -> None:
    def run(boxes: Tensor, level: Tensor, *features: Tensor) -> Tensor:
        settings = {"output_size": (3, 4), "sampling_ratio": ratio, "aligned": aligned}
        return roi_align(features, boxes, level, scales=SCALES[: len(features)], **settings)

    example = (regions(2, 9, 0), level_of(2, 9, levels), *a_pyramid(2, 40, 56, levels, 0))
    file = export(run, example, (0, 1), (0, 1), *[(0, 2, 3)] * levels)
    # The last one has no region of the highest level.
    for n, p, below in ((1, 20, levels), (3, 11, levels), (3, 4, max(1, levels - 1))):
        boxes, level = regions(n, p, n), level_of(n, p, below)
        features = a_pyramid(n, 40, 60, levels, n)
        (found,) = file.run(runtime, boxes, level, *features)
        torch.testing.assert_close(found, run(boxes, level, *features), rtol=1e-4, atol=1e-4)
        for k, feature in enumerate(features):
            theirs = tv.roi_align(feature, list(boxes), (3, 4), SCALES[k], ratio, aligned).view_as(found)
            torch.testing.assert_close(found[level == k], theirs[level == k], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@both
@pytest.mark.parametrize("size", [(7, 7), (2, 5)])
def test_roi_pool(export: Callable[..., Runtimes], size: tuple[int, int], runtime: str) -> None:
    """Corners that are halves of a cell too, which are rounded away from 0."""

    def run(features: Tensor, boxes: Tensor) -> Tensor:
        return roi_pool(features, boxes, scale=1 / 16, output_size=size)

    def example(n: int, p: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        (features,) = a_pyramid(n, height, width, 1, n)
        extent = torch.tensor([width, height, width, height]) * 16.0
        boxes = (regions(n, p, n).clamp(min=0) * 1.5).minimum(extent)
        boxes[:, 3] = torch.tensor([8.0, 24.0, 40.0, 72.0])
        return features, boxes

    file = export(run, example(2, 9, 12, 17), (0, 2, 3), (0, 1))
    for features, boxes in (example(1, 20, 13, 18), example(3, 7, 11, 21)):
        (found,) = file.run(runtime, features, boxes)
        assert torch.equal(found, run(features, boxes))
        assert torch.equal(found, tv.roi_pool(features, list(boxes), size, 1 / 16).view_as(found))


@pytest.mark.slow
@both
@pytest.mark.parametrize("fits", [False, True])
def test_best(export: Callable[..., Runtimes], fits: bool, runtime: str) -> None:
    """Where all fit, in the order of their places."""

    def run(scores: Tensor, among: Tensor) -> tuple[Tensor, ...]:
        return tuple(best(scores, among, top=TOP, fits=fits))

    file = export(run, (torch.rand(2, 30), torch.rand(2, 30) > 0.8), (0, 1), (0, 1))
    for name, given in edge_cases().items():
        scores, among = given.scores, given.valid
        if fits:  # of no row more than TOP
            among = among & (among.cumsum(dim=1) <= TOP)
        index, valid = file.run(runtime, scores, among)
        assert index.shape == valid.shape == (len(scores), TOP)
        assert index.ge(0).all(), name  # padding too: it is gathered with
        assert index.lt(scores.shape[1]).all(), name
        for row in range(len(scores)):
            places = [k for k in range(scores.shape[1]) if among[row, k]]
            if not fits:
                places = sorted(places, key=lambda k, row=row: -float(scores[row, k]))[:TOP]
            assert index[row, valid[row]].tolist() == places, name
