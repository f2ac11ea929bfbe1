"""Detectron's blobs give the detections of a reference that follows Detectron's own rules."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import detectron_shapes
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage import Detector
from twostage.data.scenes import HARD, make_scene
from twostage.errors import DataError
from twostage.inference.predictor import make_batch
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.agreement import agreement
from twostage.parity.oracles import detect_all, reference_of
from twostage.parity.reference.detectron import detect, numbers_of, resized
from twostage.parity.variants import Variant
from twostage.parity.variants import detect as detect_by
from twostage.weights.convert import convert, read_foreign
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.detectron import from_detectron, is_detectron

SIZE, TOP = 203, 500
FACTORS = {"conv1": 0.02, "rpn_cls_logits": 0.3, "rpn_bbox_pred": 0.1, "cls_score": 2, "bbox_pred": 0.3}
FACTORS |= {f"{name}_fpn2": FACTORS[name] for name in ("rpn_cls_logits", "rpn_bbox_pred")}


def blobs(dtype: torch.dtype = torch.float32, *, pyramid: bool = True) -> dict[str, Tensor]:
    """Random ones, made under names whose ends say what they are."""
    ends = {"_bn_s": ".norm.weight", "_bn_b": ".norm.bias", "_w": ".weight", "_b": ".bias"}
    names = {}
    for name in detectron_shapes(pyramid=pyramid):
        end = next(end for end in ends if name.endswith(end))
        names[name] = name.removesuffix(end) + ("3" if "branch2c" in name else "") + ends[end]
    shapes = detectron_shapes(pyramid=pyramid)
    made = make_state({names[name]: shape for name, shape in shapes.items()}, dtype, FACTORS)
    return {name: made[names[name]] for name in shapes}


class Balanced(dict[str, Tensor]):
    """The blobs with the bias of the scores under the name by which `balancing` finds it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__({"cls_score.weight": state["cls_score_w"], "cls_score.bias": state["cls_score_b"]})


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Neither square nor a multiple of the stride."""
    return np.ascontiguousarray(make_scene(0, 1, 2, style=HARD).image[:150])


def built(state: dict[str, Tensor], settings: dict[str, Any] | None = None) -> Model:
    found = from_detectron(state, settings)
    config = configure(found.config, {"size": SIZE, "max_size": 1333, "rpn_top_test": TOP})
    with Unfilled():
        model = build(config, found.num_classes)
    load_all(model, found.tensors, "these")
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pyramid", [True, False], ids=["FPN", "C4"])
def test_the_reference_finds_the_same(pyramid: bool, dtype: torch.dtype, photo: np.ndarray) -> None:
    state = blobs(dtype, pyramid=pyramid)
    numbers = replace(numbers_of(state), size=SIZE, rpn_top=TOP)
    small, shape = resized(photo, numbers), (photo.shape[0], photo.shape[1])
    balanced = Balanced(state)
    detect(state, small, shape, numbers, balancing(balanced))
    state["cls_score_b"] = balanced["cls_score.bias"]
    expected = detect(state, small, shape, numbers)
    require_same(built(state), small, expected, dtype, shape)


def test_settings_in_the_file() -> None:
    settings = {
        "TEST": {"SCALE": 640, "MAX_SIZE": 1000, "NMS": 0.4, "RPN_PRE_NMS_TOP_N": 77, "DETECTIONS_PER_IM": 9},
        "FAST_RCNN": {"ROI_XFORM_SAMPLING_RATIO": 4},
        "RESNETS": {"STRIDE_1X1": False},
        "MODEL": {"BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0]},
        "RPN": {"SIZES": [1, 2]},
        "FPN": {"FPN_ON": True},
    }
    found = from_detectron(blobs(), settings)
    config: Any = found.config
    assert (config.image.size, config.image.max_size, config.postprocess.nms) == (640, 1000, 0.4)
    assert (config.rpn.top_test, config.postprocess.max_det, config.roi.sampling_ratio) == (77, 9, 4)
    assert (config.backbone.stride_in_1x1, config.stage.delta_weights) == (False, (1, 1, 1, 1))
    assert {"size", "nms", "stride_in_1x1"} <= found.given


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask_fcn_logits_w", "Mask R-CNN, which is not converted"),
        ("kps_score_w", "Keypoint R-CNN"),
        ("retnet_cls_pred_fpn3_w", "RetinaNet"),
        ("res2_0_branch2a_gn_s", "a network with GroupNorm"),
    ],
)
def test_others_are_refused_by_name(name: str, message: str) -> None:
    state = blobs() | {name: torch.zeros(1)}
    assert is_detectron(state)
    with pytest.raises(DataError, match=f"detectron's {name} belongs to {message}"):
        from_detectron(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FAST_RCNN": {"ROI_XFORM_METHOD": "RoIPoolF"}}, "ROI_XFORM_METHOD is RoIPoolF: only RoIAlign"),
        ({"TEST": {"SOFT_NMS": {"ENABLED": True}}}, r"TEST\.SOFT_NMS\.ENABLED is True: only False"),
        ({"TEST": {"BBOX_REG": False}}, r"TEST\.BBOX_REG is False: only True"),
        ({"TEST": {"RPN_MIN_SIZE": 16}}, r"TEST\.RPN_MIN_SIZE is 16: only 0 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_would_find_something_else_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_detectron(blobs(), settings)


def test_anchors_and_mean_of_the_settings() -> None:
    settings = {
        "FPN": {
            "FPN_ON": True,
            "RPN_ANCHOR_START_SIZE": 16,
            "RPN_ASPECT_RATIOS": [0.25, 1, 4],
            "ROI_CANONICAL_SCALE": 112,
        },
        "TEST": {"SCALES": "(400,)"},
        "PIXEL_MEANS": [[[1.0, 2.0, 3.0]]],
    }
    config: Any = from_detectron(blobs(), settings).config
    assert config.anchors.sizes == ((16,), (32,), (64,), (128,), (256,))
    assert (config.anchors.ratios, config.roi.canonical_size, config.image.size) == ((0.25, 1, 4), 112, 400)
    assert [255 * value for value in config.image.mean] == pytest.approx([3, 2, 1])


def test_anchor_sizes_as_configurations_write_them() -> None:
    """configs/12_2017_baselines/e2e_faster_rcnn_R-50-C4_1x.yaml: YAML reads the tuple as text."""
    found = from_detectron(blobs(pyramid=False), {"RPN": {"SIZES": "(16, 32, 64, 128, 256)"}})
    assert found.config.anchors.sizes == ((16, 32, 64, 128, 256),)  # type: ignore[union-attr]


def test_a_backbone_is_no_detector() -> None:
    state = {name: tensor for name, tensor in blobs().items() if not name.startswith(("cls_score", "bbox_pred"))}
    with pytest.raises(DataError, match="no cls_score_w: they are a backbone's"):
        from_detectron(state)


def test_an_unknown_blob_is_named() -> None:
    found = from_detectron(blobs() | {"strange_x": torch.zeros(1)})
    assert "strange_x" in found.tensors


def test_an_image_reaches_to_the_next_multiple_beside_a_larger_one(photo: np.ndarray) -> None:
    """Detectron tests one image at a time: its padded image is the image's own."""
    model = built(blobs())
    wide = make_batch([photo, np.concatenate([photo, photo], axis=1)], model.config)
    with torch.no_grad():
        proposals = model.stages(wide).proposals
    width = int(wide.sizes[0, 1])
    assert -(-width // 32) * 32 < wide.canvas[1]
    assert width < proposals.boxes[0, ..., 2][proposals.valid[0]].max() <= -(-width // 32) * 32


CFG = """
!!python/object/new:detectron.utils.collections.AttrDict
dictitems:
  BBOX_XFORM_CLIP: !!python/object/apply:numpy.core.multiarray.scalar [1]
  TEST: !!python/object/new:detectron.utils.collections.AttrDict
    dictitems: {SCALE: 128, MAX_SIZE: 400, DETECTIONS_PER_IM: 60}
    state: {_AttrDict__immutable: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As Detectron saves it: momentum beside the weights, and the settings as YAML."""
    arrays = {name: tensor.numpy() for name, tensor in blobs().items()}
    arrays |= {"fc6_w_momentum": np.ones((2, 2), np.float32), "lr": np.float32(0.1)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": arrays, "cfg": CFG}, protocol=2))
    return path


def test_a_file_with_its_settings_and_on_one_canvas_with_others(file: Path, tmp_path: Path) -> None:
    foreign = read_foreign(file)
    done = convert(foreign, tmp_path / "mine.safetensors", names=["a", "b", "c", "d", "e"])
    assert (done.source, done.card.model) == ("detectron", "faster_rcnn_resnet50_fpn")
    config: Any = done.card.config
    assert (config.image.size, config.image.max_size, config.postprocess.max_det) == (128, 400, 60)
    photos = [np.ascontiguousarray(make_scene(i, 1, 2, style=HARD).image[: 150 + 40 * i]) for i in range(2)]
    own = Variant(config, Detector.load(tmp_path / "mine.safetensors", device="cpu").model.state_dict(), 5)
    reference = reference_of(foreign.checkpoint, foreign.source, config, foreign.settings)
    expected, found = detect_all(reference, photos, batch=2), detect_by(own.build(), photos, batch=2)
    assert agreement(expected, found, 2, config.postprocess).same()
    assert len(expected) > 20


def test_settings_that_cannot_be_read_are_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(content | {"cfg": "- 1\n- 2"}, protocol=2))
    assert read_foreign(file).settings is None
    assert "the settings are list, and not by name" in caplog.text
