"""The data of the page against what the library computes."""

import base64
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from inspecting import FAMILIES, target_of

from twostage.data.scenes import Scene
from twostage.detector import Detector
from twostage.inspection.account import Objects, account
from twostage.inspection.page.columns import column
from twostage.inspection.page.data import page_data
from twostage.inspection.page.grids import grid_data
from twostage.inspection.page.html import in_script, inline, page
from twostage.inspection.trace import Trace
from twostage.models.regions.pooling import AlignedRegions, RoIAlignConfig

DTYPES = {"f4": "<f4", "i4": "<i4", "i2": "<i2", "u2": "<u2", "u1": "u1"}


def array(column: dict[str, str]) -> np.ndarray:
    """The numbers of a column."""
    return np.frombuffer(base64.b64decode(column["data"]), dtype=DTYPES[column["kind"]])


def boxes(column: dict[str, str]) -> np.ndarray:
    """The boxes of a column."""
    return array(column).reshape(-1, 4)


def traced(detectors: Callable[..., Detector], name: str, scene: Scene) -> Trace:
    """A trace with targets."""
    return detectors(name).trace(scene.image, target_of(scene))


@pytest.mark.parametrize("name", FAMILIES)
def test_data_of_every_family_is_json_and_names_the_family(
    name: str, detectors: Callable[..., Detector], scene: Scene
) -> None:
    trace = traced(detectors, name, scene)
    objects = Objects.of(*target_of(scene))
    explained = account(trace, objects, trace.config.postprocess)
    data = json.loads(in_script(page_data(trace, trace.config.postprocess, objects, explained, title=name)))
    assert data["family"] == FAMILIES[name]
    assert data["names"] == list(trace.names)
    assert set(data["truth"]["missed"]) == {str(place) for place in explained.misses}
    assert len(boxes(data["regions"]["boxes"])) == int(trace.stages.proposals.valid.sum())


@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "faster_rcnn_tiny", "retinanet_tiny_fpn"])
def test_anchors_are_those_of_the_trace(name: str, detectors: Callable[..., Detector], scene: Scene) -> None:
    """The grid of each level gives every anchor exactly, and its logit in steps of a 254th of their range."""
    trace = traced(detectors, name, scene)
    data = page_data(trace, trace.config.postprocess)["anchors"]
    predictions = trace.stages.anchors
    assert predictions is not None
    for level, wanted in zip(data["levels"], predictions.anchors, strict=True):
        y, x = np.meshgrid(range(level["rows"]), range(level["columns"]), indexing="ij")
        shift = np.stack([x * level["step"][1], y * level["step"][0]] * 2, axis=-1).reshape(-1, 1, 4)
        made = (shift + np.array(level["cell"])).reshape(-1, 4)
        np.testing.assert_allclose(made, wanted.numpy(), atol=1e-3)
    logits = torch.cat(predictions.logits, dim=1)[0]
    if name.startswith("retinanet"):
        logits = logits.unflatten(0, (-1, len(trace.names))).amax(dim=1)
    step = (data["high"] - data["low"]) / 254
    read = data["low"] + (array(data["logits"]).astype(float) - 1) * step
    np.testing.assert_allclose(read, logits.numpy(), atol=0.51 * step + 1e-6)


def test_ranked_anchors_are_those_that_enter_the_suppression(detectors: Callable[..., Detector], scene: Scene) -> None:
    """Their scores, boxes and order; what became of the others is "low"."""
    trace = traced(detectors, "faster_rcnn_tiny_fpn", scene)
    fates = trace.anchors
    assert fates is not None
    ranked = page_data(trace, trace.config.postprocess)["anchors"]["ranked"]
    anchors = torch.from_numpy(array(ranked["anchors"]).astype(np.int64))
    assert sum(ranked["counts"]) == len(anchors)
    assert set(anchors.tolist()) == set((fates.fate > 1).nonzero()[:, 0].tolist())
    np.testing.assert_array_equal(boxes(ranked["boxes"]), fates.boxes[anchors].numpy())
    np.testing.assert_array_equal(array(ranked["scores"]), fates.scores[anchors].numpy())


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_above_the_threshold_are_exact(name: str, detectors: Callable[..., Detector], scene: Scene) -> None:
    """The first pairs are those that the library suppresses, bit by bit; behind them come lower ones."""
    trace = traced(detectors, name, scene)
    pairs = page_data(trace, trace.config.postprocess)["pairs"]
    wanted = trace.above_threshold(trace.config.postprocess)
    count = int(wanted.valid.sum())
    assert 0 < count <= len(array(pairs["scores"]))
    np.testing.assert_array_equal(boxes(pairs["boxes"])[:count], wanted.boxes[0, :count].numpy())
    np.testing.assert_array_equal(array(pairs["scores"])[:count], wanted.scores[0, :count].numpy())
    np.testing.assert_array_equal(array(pairs["labels"])[:count], wanted.labels[0, :count].numpy())
    np.testing.assert_array_equal(array(pairs["regions"])[:count], wanted.regions[0, :count].numpy())


def test_points_of_a_region_average_to_what_roialign_reads(detectors: Callable[..., Detector], scene: Scene) -> None:
    """The bilinear mean of the map at the points of each bin is the region's feature."""
    trace = traced(detectors, "faster_rcnn_tiny_fpn", scene)
    (grid,) = page_data(trace, trace.config.postprocess)["regions"]["grids"]
    proposals = trace.stages.proposals.boxes[:, :5]
    wanted = trace.model.head.regions.pool(trace.stages.maps[:4], proposals)[0]  # type: ignore[union-attr,operator]
    levels = array(grid["levels"])
    samples = array(grid["samples"]).reshape(-1, 2)
    assert (samples == 2).all()
    y, x = (array(grid[axis]).reshape(-1, 7, 2) for axis in "yx")
    for region in range(5):
        features = trace.stages.maps[levels[region]][0]
        points = torch.stack(
            [bilinear(features, v, u) for v in y[region].ravel() for u in x[region].ravel()]
        )  # [14 * 14, c]
        mean = points.view(7, 2, 7, 2, -1).mean(dim=(1, 3)).permute(2, 0, 1)
        torch.testing.assert_close(mean, wanted[region], rtol=1e-4, atol=1e-4)


def test_a_bin_may_have_more_than_255_points() -> None:
    """One point for each pixel of the map, without a limit, in a box of 2000 columns."""
    regions = AlignedRegions(RoIAlignConfig(sampling_ratio=0, max_samples=None), (4,))
    grid = grid_data(regions, torch.tensor([[0.0, 0.0, 8000.0, 80.0]]), [(20, 2000)], (80, 8000))
    assert grid is not None
    assert array(grid["samples"]).tolist() == [math.ceil(20 / 7), math.ceil(2000 / 7)]


def bilinear(features: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """The features between four cells."""
    top, left = int(y), int(x)
    bottom, right = min(top + 1, features.shape[1] - 1), min(left + 1, features.shape[2] - 1)
    v, u = float(y) - top, float(x) - left
    upper = features[:, top, left] * (1 - u) + features[:, top, right] * u
    lower = features[:, bottom, left] * (1 - u) + features[:, bottom, right] * u
    return upper * (1 - v) + lower * v


@pytest.mark.parametrize("name", ["fast_rcnn_tiny", "faster_rcnn_tiny_fpn"])
def test_without_maps_regions_are_read_where_they_are_with_them(
    name: str, detectors: Callable[..., Detector], scene: Scene
) -> None:
    """As of an exported file, which gives no maps and whose layers are not prepared."""
    detector = detectors(name)
    trace = detector.trace(scene.image[:150])
    post = trace.config.postprocess
    without = page_data(replace(trace, stages=trace.stages._replace(maps=()), model=detector.model), post)
    assert without["maps"] == []
    assert without["regions"]["grids"][0] is not None
    assert without["regions"]["grids"] == page_data(trace, post)["regions"]["grids"]


@pytest.mark.parametrize(
    ("name", "kind"), [("fast_rcnn_tiny", None), ("sppnet_tiny_5_scales", "bins"), ("rcnn_tiny", "window")]
)
def test_grids_of_the_other_poolings(
    name: str, kind: str | None, detectors: Callable[..., Detector], scene: Scene
) -> None:
    """Bins of SPPnet on the map of each region's size; the window of R-CNN; RoIPool or RoIAlign by the field roi."""
    trace = traced(detectors, name, scene)
    data = page_data(trace, trace.config.postprocess)
    (grid,) = data["regions"]["grids"]
    assert grid["kind"] == (kind or grid["kind"])
    if kind == "window":
        assert (grid["size"], grid["context"]) == (96, 7)
        return
    if grid["kind"] == "bins":
        levels, y, x = array(grid["levels"]), array(grid["y"]), array(grid["x"])
        count = len(levels)
        rows, columns = (np.array([one[name] for one in data["maps"]]) for name in ("rows", "columns"))
        assert (y.reshape(count, -1).max(axis=1) <= rows[levels]).all()
        assert (x.reshape(count, -1).max(axis=1) <= columns[levels]).all()


def test_refinements_of_a_cascade_are_what_each_stage_read_next(
    detectors: Callable[..., Detector], scene: Scene
) -> None:
    trace = traced(detectors, "cascade_mask_rcnn_tiny_fpn", scene)
    regions = page_data(trace, trace.config.postprocess)["regions"]
    valid = trace.stages.proposals.valid[0]
    assert len(regions["refined"]) == len(regions["grids"]) == 3
    for refined, stage in zip(regions["refined"][:2], trace.stages.predictions[1:], strict=True):  # type: ignore[union-attr]
        np.testing.assert_array_equal(boxes(refined), stage.boxes[0][valid].numpy())


def test_class_scores_sum_to_one_with_the_background(detectors: Callable[..., Detector], scene: Scene) -> None:
    trace = traced(detectors, "faster_rcnn_tiny_fpn", scene)
    classes = page_data(trace, trace.config.postprocess)["regions"]["classes"]
    scores = array(classes["scores"]).reshape(-1, classes["shown"]) / 65535
    np.testing.assert_allclose(scores.sum(axis=1) + array(classes["background"]) / 65535, 1, atol=1e-4)


def test_many_classes_are_cut_to_the_best(detectors: Callable[..., Detector], scene: Scene) -> None:
    many = Detector.build(
        "faster_rcnn_tiny_fpn", [f"class {i}" for i in range(90)], device="cpu", size=64, max_size=96, rpn_keep_test=20
    )
    trace = many.trace(scene.image)
    assert page_data(trace, trace.config.postprocess)["regions"]["classes"]["shown"] == 8


def test_the_post_processing_of_the_page_may_be_another(detectors: Callable[..., Detector], scene: Scene) -> None:
    trace = traced(detectors, "faster_rcnn_tiny_fpn", scene)
    data = page_data(trace, replace(trace.config.postprocess, score_threshold=0.3, nms=0.7, max_det=7))
    assert (data["settings"]["score"], data["settings"]["nms"], data["settings"]["most"]) == (0.3, 0.7, 7)
    assert data["pairs"]["floor"] == 0.01


def test_a_large_picture_is_scaled_and_its_coordinates_are_not() -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", size=64, max_size=96)
    trace = detector.trace(np.zeros((1000, 4000, 3), dtype=np.uint8))
    data = page_data(trace, trace.config.postprocess)
    assert (data["image"]["width"], data["image"]["height"]) == (4000, 1000)
    assert len(data["image"]["picture"]) < 40_000
    top = boxes(data["regions"]["boxes"]) * np.array([*data["batch"]["factors"][::-1]] * 2)
    assert top[:, 2].max() > 2000


def test_script_data_holds_nothing_that_ends_its_element() -> None:
    hostile = "</script><script>alert(1)</script><!-- &amp; \u2028 \u2029"
    text = in_script({"title": hostile})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"title": hostile}


def test_numbers_that_are_no_json_are_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        in_script({"x": float("nan")})


@pytest.mark.parametrize(
    ("kind", "values"), [("f4", [0.1, -2.5]), ("i4", [-1, 70000]), ("u1", [0, 255]), ("i2", [-1, 9])]
)
def test_columns_are_little_endian(kind: Any, values: list[float]) -> None:
    np.testing.assert_array_equal(array(column(values, kind)), np.array(values, dtype=DTYPES[kind]))


def test_a_trace_shows_in_a_notebook(detectors: Callable[..., Detector], scene: Scene) -> None:
    """As a frame whose document is the very page, quoted once."""
    import html

    trace = detectors("faster_rcnn_tiny_fpn").trace(scene.image)
    shown = trace._repr_html_()
    post = replace(trace.config.postprocess, score_threshold=0.5, soft_nms_min_score=None)
    assert shown == inline(page(trace, post)), "from the score at which detections are shown"
    assert shown.startswith("<iframe ")
    assert html.unescape(shown.partition('srcdoc="')[2].removesuffix('"></iframe>')) == page(trace, post)


def test_a_trace_with_a_target_shows_its_objects_in_a_notebook(
    detectors: Callable[..., Detector], scene: Scene
) -> None:
    """Their boxes on the pixels of the image, and why they are missed."""
    target = target_of(scene)
    trace = detectors("faster_rcnn_tiny_fpn").trace(scene.image, target)
    truth = json.loads(page(trace).partition('id="data">')[2].partition("</script>")[0])["truth"]
    np.testing.assert_allclose(boxes(truth["boxes"]), target[0], atol=1e-3)
    misses = account(trace, Objects.of(*target), trace.config.postprocess).misses
    assert set(truth["missed"]) == {str(place) for place in misses}


def test_a_page_of_1000_proposals_is_small_and_quick(scene: Scene) -> None:
    """Under 5 MB of an 800 x 1066 photo with the anchors of a pyramid; measured: 0.2 s, 1.4 MB."""
    from PIL import Image

    detector = Detector.build(
        "faster_rcnn_tiny_fpn",
        [f"class {i}" for i in range(80)],
        device="cpu",
        choose_forms=False,
        size=800,
        max_size=1333,
        rpn_top_test=1000,
        rpn_keep_test=1000,
    )
    photo = np.asarray(Image.fromarray(scene.image).resize((1066, 800)))
    trace = detector.trace(photo)
    assert len(page(trace)) < 5e6


def test_a_model_that_diverged_still_has_a_page(detectors: Callable[..., Detector], scene: Scene) -> None:
    """Its numbers are NaN, and its page shows no detections."""
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", size=64, max_size=96)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.fill_(float("nan"))
    trace = detector.trace(scene.image)
    assert len(array(page_data(trace, trace.config.postprocess)["pairs"]["scores"])) == 0
