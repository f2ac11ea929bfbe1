"""The highest IoU with an anchor, beside the IoU with every anchor of the model itself."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from twostage import Dataset
from twostage.data.batch import canvas_shape
from twostage.data.dataset import select_images
from twostage.data.recognise import open_dataset
from twostage.inspection.anchor_reach import (
    AnchorModelConfig,
    _map_shapes,
    anchor_positions,
    best_iou,
    canvas_shapes,
    resized_boxes,
    shares,
    shares_by_class,
    shares_by_size,
    used_objects,
    zoo_anchor_sets,
)
from twostage.models.build import backbone_of, build
from twostage.models.configure import configure
from twostage.models.one_stage import OneStage
from twostage.models.zoo import ZOO, named

SMALL = {"size": 48, "max_size": 96}
FAR = {"anchor_sizes": ((8.0,), (24.0,), (40.0,), (64.0,)), "anchor_ratios": (0.3, 1.0)}
# Every field of anchors, maps and images that matters, in some model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny pyramid": ("faster_rcnn_tiny_fpn", SMALL),
    "other sizes": ("faster_rcnn_tiny_fpn", SMALL | FAR),
    "stride of the canvas": (
        "faster_rcnn_tiny_fpn",
        SMALL | {"anchor_stride": "canvas", "anchor_rounding": "nearest", "divisor": 20},
    ),
    "one map": ("faster_rcnn_tiny_fpn", SMALL | {"pyramid": "single"}),
    "image pyramid": ("faster_rcnn_tiny_fpn", SMALL | {"pyramid": "image", "divisor": 8}),
    "within the image": (
        "faster_rcnn_tiny",
        SMALL | {"rpn_cross_boundary": False, "anchors_in_padding": False, "anchor_sizes": ((8.0, 16.0, 30.0),)},
    ),
    "Caffe's anchors": (
        "faster_rcnn_tiny",
        SMALL | {"anchor_rounding": "caffe", "anchor_offset": 7.5, "divisor": 1, "anchor_sizes": ((16.0, 32.0),)},
    ),
    "stretched": ("faster_rcnn_tiny", {"resize": "fixed", "size": 64, "anchor_offset": "half_stride"}),
    "one stage": ("retinanet_tiny_fpn", SMALL),
}


@cache
def model_of(name: str) -> tuple[AnchorModelConfig, Any]:
    model, fields = MODELS[name]
    config = cast(AnchorModelConfig, configure(named(model), fields))
    return config, build(config, 2).eval()  # type: ignore[arg-type]


def by_every_anchor(dataset: Dataset, config: AnchorModelConfig, model: Any) -> np.ndarray:
    """The highest IoU of each object with all anchors that the model generates for its image alone."""
    anchors = model.head.anchors if isinstance(model, OneStage) else model.rpn.anchors
    crossing = isinstance(model, OneStage) or model.rpn.config.cross_boundary
    best = []
    for index in range(len(dataset)):
        old = dataset.sizes[index].tolist()
        height, width = config.image.resizing.shape(*old)
        canvas = canvas_shape(height, width, config.image.divisor)
        with torch.no_grad():
            maps = model.backbone(torch.zeros(1, 3, *canvas))
        levels, inside = anchors(maps, canvas, torch.tensor([[height, width]]))
        boxes, counts = torch.cat(levels), torch.cat(inside, dim=1)[0]
        if not crossing:
            edge = torch.tensor([width, height])
            counts = counts & (boxes[:, :2] >= 0).all(dim=1) & (boxes[:, 2:] <= edge).all(dim=1)
        scale = torch.tensor([width / old[1], height / old[0]] * 2)
        objects = torch.from_numpy(dataset.objects(index).boxes) * scale
        iou = box_iou(objects.double(), boxes.double()) * counts
        best += iou.amax(dim=1).tolist() if len(boxes) else [0.0] * len(objects)
    return np.array(best)


@st.composite
def drawn_images(draw: st.DrawFn) -> tuple[tuple[int, int], list[list[float]]]:
    """Height, width and boxes of an image, from one pixel on."""
    height, width = draw(st.integers(1, 120)), draw(st.integers(1, 120))

    def interval(side: int) -> tuple[float, float]:
        """Two multiples of a quarter of a pixel."""
        start = draw(st.integers(0, 4 * side - 1))
        return start / 4, draw(st.integers(start + 1, 4 * side)) / 4

    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        (x1, x2), (y1, y2) = interval(width), interval(height)
        boxes.append([x1, y1, x2, y2])
    return (height, width), boxes


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(drawn=st.lists(drawn_images(), min_size=1, max_size=3))
def test_the_best_anchor_is_that_of_the_whole_iou_matrix(name: str, drawn: list) -> None:
    config, model = model_of(name)
    samples = [(np.zeros((*shape, 3), np.uint8), boxes, [0] * len(boxes)) for shape, boxes in drawn]
    dataset = Dataset.from_samples(samples, ["a"])
    best = best_iou(anchor_positions(dataset, config), config)
    assert best == pytest.approx(by_every_anchor(dataset, config, model), abs=1e-5)


def test_blood_cells_as_by_every_anchor(real_data: Path) -> None:
    dataset = select_images(open_dataset(real_data / "blood-cells", split="val"), np.arange(6))
    config = named("faster_rcnn_tiny_fpn")
    best = best_iou(anchor_positions(dataset, config), config)  # type: ignore[arg-type]
    model = build(config, 3).eval()  # type: ignore[arg-type]
    assert best == pytest.approx(by_every_anchor(dataset, config, model), abs=1e-5)  # type: ignore[arg-type]
    assert shares(best)["iou50"] > 0.9


SIDES = [(75, 101), (288, 416), (608, 64), (33, 640)]


@pytest.mark.parametrize("place", range(len(zoo_anchor_sets())))
def test_shapes_of_small_maps_give_those_of_large_ones(place: int) -> None:
    config, _ = zoo_anchor_sets()[place]
    network = backbone_of(config).eval()
    canvases = canvas_shapes(np.array(SIDES), config.image.divisor)
    shapes = _map_shapes(network, canvases)
    for row, (height, width) in enumerate(canvases.tolist()):
        with torch.no_grad():
            maps = network(torch.zeros(1, 3, height, width))
        assert shapes[:, row].tolist() == [list(m.shape[2:]) for m in maps]


def test_models_of_one_set_have_the_same_strides() -> None:
    named_once = [name for _, models in zoo_anchor_sets() for name in models]
    assert sorted(named_once) == sorted(name for name, config in ZOO.items() if getattr(config, "anchors", None))
    for _, models in zoo_anchor_sets():
        # The depth of a network does not change its strides.
        networks = {(type(c.backbone), getattr(c, "neck", None)): c for c in (ZOO[name] for name in models)}
        assert len({backbone_of(config).strides for config in networks.values()}) == 1  # type: ignore[arg-type]


def test_canvases_are_those_of_batches() -> None:
    shapes = np.array([[1, 32], [33, 64]])
    assert canvas_shapes(shapes, 32).tolist() == [list(canvas_shape(h, w, 32)) for h, w in shapes.tolist()]


def test_boxes_on_resized_images(make_blank: Callable[..., Dataset]) -> None:
    dataset = make_blank([(40, 60), (40, 60), (50, 50)], [[[0, 0, 30, 20]], [], [[10, 20, 30, 50]]])
    boxes, shapes = resized_boxes(dataset, named("faster_rcnn_tiny_fpn").image.resizing)
    assert shapes.tolist() == [[320, 480], [320, 480], [320, 320]]
    assert boxes.tolist() == pytest.approx(np.array([[0, 0, 240, 160], [64, 128, 192, 320]]))


def test_shares_by_size_and_class(make_blank: Callable[..., Dataset]) -> None:
    """Sizes are those of the original image: 20 x 20 is small, 40 x 40 medium, 100 x 100 large."""
    boxes = [[0, 0, 20, 20], [0, 0, 40, 40], [0, 0, 100, 100], [0, 0, 32, 32]]
    dataset = make_blank([(120, 120)], [boxes], [[0, 0, 0, 1]])
    iou = np.array([0.5, 0.4, 0.7, 0.69])
    every = shares_by_size(iou, dataset.areas)
    assert every["objects"] == 4
    assert (every["iou50"], every["iou70"]) == (0.75, 0.25)
    assert every["small"] == {"objects": 1, "iou50": 1, "iou70": 0}
    assert every["medium"] == {"objects": 2, "iou50": 0.5, "iou70": 0}
    by_class = shares_by_class(dataset, iou, used_objects(dataset))
    assert by_class["b"]["medium"] == {"objects": 1, "iou50": 1, "iou70": 0}
    assert by_class["b"]["large"] == {"objects": 0, "iou50": -1, "iou70": -1}


def test_no_objects_and_no_images(make_blank: Callable[..., Dataset]) -> None:
    config = named("faster_rcnn_tiny_fpn")
    empty = make_blank([(30, 40)], [[]])
    for dataset in (empty, select_images(empty, np.arange(0))):
        best = best_iou(anchor_positions(dataset, config), config)  # type: ignore[arg-type]
        assert best.shape == (0,)
        assert shares(best) == {"objects": 0, "iou50": -1, "iou70": -1}
