"""Files of other projects become ours: recognised, with what they do not show said, and refused where they are not."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import detectron2_shapes, mmdetection_shapes
from torch import Tensor

from twostage import Detector
from twostage.errors import DataError, UsageError
from twostage.weights.convert import convert, foreign_of, recognise
from twostage.weights.pickled import read_checkpoint

NAMES = ["a", "b", "c", "d", "e"]


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors that take no time to make; variances are 1."""
    return {name: torch.full(shape, float("running_var" in name)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    return {"detectron2": zeros(detectron2_shapes()), "mmdetection": zeros(mmdetection_shapes())}


@pytest.fixture(scope="module")
def zoo_file(states: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As detectron2's model zoo has them: arrays in a plain pickle."""
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    arrays = {name: tensor.numpy() for name, tensor in states["detectron2"].items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    return path


@pytest.mark.parametrize("project", ["detectron2", "mmdetection"])
def test_projects_are_recognised(states: dict[str, dict[str, Tensor]], project: str) -> None:
    assert recognise(states[project]) == project
    assert recognise({"conv1.weight": torch.zeros(1)}) is None
    with pytest.raises(UsageError, match="Did you mean 'detectron2'"):
        recognise({}, "detectrom2")


def test_a_file_of_the_zoo(zoo_file: Path, tmp_path: Path) -> None:
    done = convert(foreign_of(read_checkpoint(zoo_file), "detectron2"), tmp_path / "a.safetensors", names=NAMES)
    detector = Detector.load(tmp_path / "a.safetensors", device="cpu")
    assert (detector.name, list(detector.names)) == ("faster_rcnn_resnet50_fpn", NAMES)
    assumed = {each.path: each.value for each in done.assumptions}
    assert assumed["image.resize_by"] == "pillow"
    assert assumed["backbone.stride_in_1x1"] is True
    assert assumed["roi.sampling_ratio"] == 0
    assert not any(each.given for each in done.assumptions)


CONFIG = """
_BASE_: base.yaml
MODEL:
  RESNETS: {DEPTH: 50, STRIDE_IN_1X1: false}
  PIXEL_STD: [57.375, 57.12, 58.395]
  ROI_HEADS: {NUM_CLASSES: 5, SCORE_THRESH_TEST: 0.3}
  ROI_BOX_CASCADE_HEAD: {IOUS: !!python/tuple [0.5, 0.6, 0.7]}
  ANCHOR_GENERATOR: {SIZES: !!python/object/apply:eval ["[[1]]"]}
INPUT: {MIN_SIZE_TEST: 640}
"""


def test_settings_of_detectron2(zoo_file: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "INPUT: {MAX_SIZE_TEST: 999, MIN_SIZE_TEST: 1}\nTEST: {DETECTIONS_PER_IMAGE: 7}\n"
    )
    settings = tmp_path / "config.yaml"
    settings.write_text(CONFIG)
    done = convert(
        foreign_of(read_checkpoint(zoo_file), "detectron2", settings), tmp_path / "a.safetensors", names=NAMES
    )
    config = done.card.config
    assert (config.image.size, config.image.max_size, config.postprocess.max_det) == (640, 999, 7)
    assert config.image.std == pytest.approx([58.395 / 255, 57.12 / 255, 57.375 / 255])
    assert config.backbone.stride_in_1x1 is False
    assert config.postprocess.score_threshold == 0.3
    assert config.anchors.sizes[0] == (32.0,)  # what would run code is not read
    given = {each.path for each in done.assumptions if each.given}
    assert {"image.size", "image.std", "postprocess.score_threshold", "backbone.stride_in_1x1"} <= given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {RESNETS: {DEPTH: 101}}", "DEPTH 101, the weights show 50"),
        ("MODEL: {MASK_ON: true}", "MASK_ON True, the weights show False"),
        ("MODEL: {META_ARCHITECTURE: RetinaNet}", "RetinaNet, the weights show GeneralizedRCNN"),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 80}}", "NUM_CLASSES 80, the weights show 5"),
        ("[1, 2]", "it holds list, not settings by name"),
        ("a: [", "cannot be read as a configuration in YAML"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml: cannot be read"),
    ],
)
def test_settings_of_something_else(zoo_file: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    checkpoint = read_checkpoint(zoo_file)
    with pytest.raises(DataError, match=message):
        convert(foreign_of(checkpoint, "detectron2", tmp_path / "config.yaml"), tmp_path / "a.safetensors", names=NAMES)
    assert not (tmp_path / "a.safetensors").exists()


MM_CONFIG = """
norm = dict(type='BN', requires_grad=False)
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(type='ResNet', depth=50, style='caffe', norm_cfg=norm),
    rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=200, nms=dict(type='nms', iou_threshold=0.6)),
        rcnn=dict(score_thr=0.1, nms=dict(type='soft_nms', iou_threshold=0.4), max_per_img=50)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1000, 600), keep_ratio=True)]
train_dataloader = dict(batch_size=2 if True else open('/nowhere'))
"""


def test_what_mmdetection_leaves_in_a_checkpoint(states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    meta = {"cfg": MM_CONFIG, "dataset_meta": {"classes": tuple(NAMES)}, "epoch": 12}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}
    torch.save({"state_dict": states["mmdetection"], "meta": meta, "optimizer": optimizer}, tmp_path / "epoch_12.pth")
    done = convert(foreign_of(read_checkpoint(tmp_path / "epoch_12.pth"), "mmdetection"), tmp_path / "a.safetensors")
    config = done.card.config
    assert done.card.names == tuple(NAMES)
    assert config.image.mean == pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255])
    assert config.image.std == pytest.approx([1 / 255] * 3)
    assert (config.image.size, config.image.max_size) == (600, 1000)
    assert config.backbone.stride_in_1x1 is True
    assert config.anchors.sizes == ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    assert (config.rpn.top_test, config.proposals.keep_test, config.rpn.nms) == (500, 200, 0.6)
    post = config.postprocess
    assert (post.score_threshold, post.nms, post.soft_nms, post.max_det) == (0.1, 0.4, "linear", 50)


def test_classes_that_nobody_names(zoo_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 classes, and the file does not name them: give --names with 5"):
        convert(foreign_of(read_checkpoint(zoo_file), "detectron2"), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="5 classes, and 2 names are given"):
        convert(foreign_of(read_checkpoint(zoo_file), "detectron2"), tmp_path / "a.safetensors", names=["a", "b"])


def damaged(state: dict[str, Tensor], change: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in (state | change).items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_heads.box_head.fc2.bias": None}, "lack head.body.fc7.bias"),
        (
            {"roi_heads.box_head.fc2.scale": torch.zeros(3)},
            "have unknown roi_heads.box_head.fc2.scale|have unknown head",
        ),
        ({"roi_heads.box_head.fc2.bias": torch.full((1024,), torch.nan)}, "fc2.bias holds 1024 values of 1024"),
        ({"roi_heads.box_head.fc2.bias": torch.zeros(7)}, r"is \(7,\), the model has \(1024,\)"),
        ({"roi_heads.keypoint_head.conv_fcn1.weight": torch.zeros(1)}, "belongs to Keypoint R-CNN"),
        ({"roi_heads.box_predictor.cls_score.weight": None}, "no layer that scores classes"),
        ({"backbone.bottom_up.res4.9.conv1.weight": torch.zeros(1)}, "7 blocks in the third stage"),
    ],
)
def test_weights_that_are_not_whole(
    states: dict[str, dict[str, Tensor]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    torch.save(damaged(states["detectron2"], change), tmp_path / "a.pth")
    with pytest.raises(DataError, match=message):
        convert(foreign_of(read_checkpoint(tmp_path / "a.pth"), "detectron2"), tmp_path / "b.safetensors", names=NAMES)
    assert not (tmp_path / "b.safetensors").exists()


def test_names_are_different_and_where_they_come_from_is_said(zoo_file: Path, tmp_path: Path) -> None:
    foreign = foreign_of(read_checkpoint(zoo_file), "detectron2")
    for names, wrong in ((["a", "a", "b", "c", "d"], "'a' comes twice"), (["a", "", "b", "c", "d"], "one is empty")):
        with pytest.raises(UsageError, match=wrong):
            convert(foreign, tmp_path / "a.safetensors", names=names)
    assert not (tmp_path / "a.safetensors").exists()
    assert convert(foreign, tmp_path / "a.safetensors", names=NAMES).names_from == "as given"


@pytest.mark.parametrize(
    "text", ["MODEL: {PIXEL_MEAN: 3}", "MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: 3}}", "MODEL: {PIXEL_STD: {a: 1}}"]
)
def test_settings_of_an_unforeseen_kind_are_an_error_of_the_data(zoo_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    foreign = foreign_of(read_checkpoint(zoo_file), "detectron2", tmp_path / "config.yaml")
    with pytest.raises((DataError, UsageError)):
        convert(foreign, tmp_path / "a.safetensors", names=NAMES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"]), "a.weight is an array of <U1, not of numbers"),
        (torch.eye(2).to_sparse(), "a.weight is a sparse tensor"),
    ],
)
def test_tensors_of_another_kind(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "a.pth"
    if isinstance(value, np.ndarray):
        path.write_bytes(pickle.dumps({"a.weight": value}))
    else:
        torch.save({"a.weight": value}, path)
    with pytest.raises(DataError, match=message):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="no entry 'x'"):
        read_checkpoint(path, "x")


def test_arrays_of_the_other_order_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.arange(3, dtype=">f4")}))
    assert read_checkpoint(tmp_path / "a.pkl").state["a"].tolist() == [0, 1, 2]


def test_half_precision_and_an_average(states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in states["detectron2"].items()}
    average = {name: tensor + 1 for name, tensor in half.items()}
    torch.save({"model": half, "model_ema": average}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert checkpoint.others == ("model_ema",)
    assert {tensor.dtype for tensor in checkpoint.state.values()} == {torch.float32}
    other = read_checkpoint(tmp_path / "a.pth", "model_ema")
    name = "roi_heads.box_head.fc2.bias"
    assert (other.state[name] == checkpoint.state[name] + 1).all()
    with pytest.raises(DataError, match=r"no entry 'ema' with weights.*model_ema"):
        read_checkpoint(tmp_path / "a.pth", "ema")
