"""Setting values by name, and the papers' and torchvision's numbers in the named configurations."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from detectors import fields_of, values_of

from twostage.data.resize import Resize
from twostage.errors import UsageError
from twostage.models.build import build
from twostage.models.component import from_dict, leaves, to_dict
from twostage.models.config import DetectorConfig, TwoStageConfig
from twostage.models.configure import configure
from twostage.models.heads.box import BoxHeadConfig, StageConfig
from twostage.models.heads.cascade import CascadeConfig
from twostage.models.heads.hybrid_task_cascade import HTCConfig
from twostage.models.heads.mask import MaskConfig
from twostage.models.heads.semantic import SemanticConfig
from twostage.models.regions.pooling import RoIAlignConfig, RoIPoolConfig
from twostage.models.zoo import ZOO, named

MODERN, PAPER = named("faster_rcnn_resnet50_fpn"), named("faster_rcnn_vgg16")


def changed(**values: Any) -> dict[str, Any]:
    """The values of the modern configuration with some of them replaced."""
    return values_of(configure(MODERN, values))


def test_the_papers_numbers() -> None:
    """Faster R-CNN, sections 3.1 to 3.3, Fast R-CNN, section 2.3, and py-faster-rcnn where they are silent."""
    expected = {
        "size": 600,
        "max_size": 1000,
        "anchor_sizes": ((128, 256, 512),),
        "anchor_ratios": (0.5, 1, 2),
        "rpn_positive_iou": 0.7,
        "rpn_negative_iou": 0.3,
        "rpn_cross_boundary": False,
        "rpn_batch": 256,
        "rpn_positive_fraction": 0.5,
        "rpn_class_normaliser": 256,
        "rpn_box_normaliser": "locations",
        "rpn_lambda": 10,
        "rpn_top_train": 12000,
        "rpn_top_test": 6000,
        "rpn_keep_train": 2000,
        "rpn_keep_test": 300,
        "rpn_nms": 0.7,
        "region_batch": 128,
        "region_positive_fraction": 0.25,
        "region_positive_iou": 0.5,
        "region_background_iou": (0, 0.5),
        "box_delta_weights": (10, 10, 5, 5),
        "box_lambda": 1,
        "roi_size": 7,
        "head_channels": 4096,
        "dropout": 0.5,
        "nms": 0.3,
    }
    assert {name: values_of(PAPER)[name] for name in expected} == expected


def test_the_modern_numbers_are_torchvisions() -> None:
    """From the signatures of its own classes."""
    from inspect import signature

    from torchvision.models.detection.faster_rcnn import FasterRCNN

    theirs = {name: p.default for name, p in signature(FasterRCNN.__init__).parameters.items()}
    ours = SimpleNamespace(**{name: v for name, v in values_of(MODERN).items() if "." not in name})
    pairs = {
        "min_size": ours.size,
        "max_size": ours.max_size,
        "rpn_pre_nms_top_n_train": ours.rpn_top_train,
        "rpn_pre_nms_top_n_test": ours.rpn_top_test,
        "rpn_post_nms_top_n_train": ours.rpn_keep_train,
        "rpn_post_nms_top_n_test": ours.rpn_keep_test,
        "rpn_nms_thresh": ours.rpn_nms,
        "rpn_fg_iou_thresh": ours.rpn_positive_iou,
        "rpn_bg_iou_thresh": ours.rpn_negative_iou,
        "rpn_batch_size_per_image": ours.rpn_batch,
        "rpn_positive_fraction": ours.rpn_positive_fraction,
        "rpn_score_thresh": ours.rpn_score_threshold,
        "box_score_thresh": ours.score_threshold,
        "box_nms_thresh": ours.nms,
        "box_detections_per_img": ours.max_det,
        "box_fg_iou_thresh": ours.region_positive_iou,
        "box_bg_iou_thresh": ours.region_background_iou[1],
        "box_batch_size_per_image": ours.region_batch,
        "box_positive_fraction": ours.region_positive_fraction,
    }
    assert pairs == {name: theirs[name] for name in pairs}


@pytest.mark.parametrize("name", ZOO)
def test_round_trip_through_json(name: str) -> None:
    config = configure(ZOO[name], fields_of(name, size=100, score_threshold=0.9))
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": None}, "rpn and anchors belong together"),
        ({"rpn": None, "anchors": None}, "there is no rpn"),
        ({"stage": None}, "give a stage"),
        ({"cascade": CascadeConfig()}, "give a stage"),
        ({"htc": HTCConfig()}, "htc needs a cascade"),
        ({"semantic": SemanticConfig()}, "semantic needs htc"),
        ({"stage": StageConfig(background_iou=(0.5, 0.1))}, r"region_background_iou is \(0.5, 0.1\): give the lower"),
        ({"mask": MaskConfig(tower=None)}, "needs box_head.body of Res5Config"),
        ({"mask": MaskConfig(), "box_head": BoxHeadConfig(edges="caffe")}, "box_head.edges needs a single"),
    ],
)
def test_components_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(replace(named("faster_rcnn_tiny_fpn"), **changes), 2)


def test_short_and_dotted_names_are_one_value() -> None:
    short, dotted = (configure(MODERN, {name: 0.6}) for name in ("rpn_nms", "rpn.nms"))
    assert short == dotted
    assert short.rpn.nms == 0.6
    assert configure(MODERN, {"postprocess.nms": 0.4}) == configure(MODERN, {"nms": 0.4})


def test_a_name_of_several_components_sets_all_of_them() -> None:
    both = configure(named("mask_rcnn_resnet50_fpn_v2"), {"norm": "group", "norm_eps": 0.0, "delta_clamp": 2.0})
    norms = (both.backbone.norm, both.neck.norm, both.box_head.body.norm, both.mask.tower.norm)
    assert all((norm.kind, norm.eps) == ("group", 0.0) for norm in norms)
    assert both.rpn.delta_clamp == both.box_head.delta_clamp == 2.0


SHARED = {
    *("norm", "norm_eps", "edges", "delta_clamp", "delta_clamp_two_sided", "focal_gamma"),
    *("roi_sampling_ratio", "roi_max_samples", "roi_aligned", "level_eps", "level_size_eps"),
    *("level_canonical_size", "stride_in_1x1"),
}


@pytest.mark.parametrize("config", ZOO.values(), ids=ZOO)
def test_every_other_name_is_of_one_value(config: DetectorConfig) -> None:
    names = Counter(name for leaf in leaves(config) for name in leaf.names)
    assert {name for name, count in names.items() if count > 1} <= SHARED


def test_proposals_from_elsewhere_leave_no_rpn() -> None:
    config = configure(MODERN, {"proposals": "selective_search"})
    assert config.rpn is None
    assert config.anchors is None
    with pytest.raises(UsageError, match="no field 'rpn_nms'"):
        configure(MODERN, {"proposals": "selective_search", "rpn_nms": 0.5})
    with pytest.raises(UsageError, match="no RPN: choose a faster_rcnn"):
        configure(named("fast_rcnn_tiny"), {"proposals": "network"})


def test_roi_chooses_the_pooling_and_keeps_its_size() -> None:
    pooled = configure(named("faster_rcnn_zf"), {})
    assert pooled.roi == RoIPoolConfig(6)
    aligned = configure(pooled, {"roi": "align", "roi_aligned": True})
    assert aligned.roi == RoIAlignConfig(6, aligned=True)
    assert configure(aligned, {"roi": "pool"}) == pooled
    assert configure(named("faster_rcnn_tiny"), {"roi": "align"}).roi == RoIAlignConfig(7, aligned=True)
    with pytest.raises(UsageError, match="no field 'roi_aligned'"):
        configure(pooled, {"roi_aligned": True})
    with pytest.raises(UsageError, match="roi cannot be 'crop': it takes 'align' or 'pool'"):
        configure(pooled, {"roi": "crop"})


@pytest.mark.parametrize(("name", "where"), [("recipe", "--recipe"), ("proposals_seed", "data proposals --seed")])
def test_fields_that_moved_elsewhere_say_where(name: str, where: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not a field of the model; .*{where}"):
        configure(MODERN, {name: 1})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("faster_rcnn_tiny_fpn", "mask_channels"),
        ("faster_rcnn_tiny_fpn", "head_convs"),
        ("faster_rcnn_resnet50_c4", "cascade_gradient"),
        ("faster_rcnn_vgg16", "norm"),
        ("faster_rcnn_vgg16", "pyramid"),
        ("fast_rcnn_tiny", "dense_convs"),
        ("fast_rcnn_tiny", "anchor_sizes"),
        ("mask_rcnn_tiny_fpn", "cascade_ious"),
        ("mask_rcnn_resnet50_fpn_v2", "htc_mask_flow"),
        ("mask_rcnn_resnet50_c4", "mask_size"),
        ("mask_rcnn_resnet50_c4", "mask_convs"),
        ("cascade_rcnn_tiny_fpn", "mask_size"),
        ("cascade_rcnn_tiny_fpn", "region_positive_iou"),
        ("cascade_mask_rcnn_tiny_fpn", "semantic_classes"),
        ("hybrid_task_cascade_tiny_fpn", "dense_norm"),
        ("retinanet_tiny_fpn", "mask_lambda"),
        ("retinanet_tiny_fpn", "roi"),
        ("retinanet_tiny_fpn", "rpn_nms"),
        ("retinanet_tiny_fpn", "class_weights"),
    ],
)
def test_fields_of_other_families_are_unknown(name: str, field: str) -> None:
    with pytest.raises(UsageError, match=f"no field '{field}'"):
        configure(named(name), {field: 1})


def test_lists_and_whole_numbers_become_what_the_field_holds() -> None:
    values = changed(anchor_sizes=[[16, 32], [64, 128]], nms=1, rpn_class_normaliser=256, mean=[0, 0, 1])
    assert values["anchor_sizes"] == ((16.0, 32.0), (64.0, 128.0))
    numbers = [*values["anchor_sizes"][0], values["nms"], values["rpn_class_normaliser"], *values["mean"]]
    assert all(type(number) is float for number in numbers)


def test_an_unknown_field_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no field 'rpn_num'.*Did you mean 'rpn_nms'"):
        changed(rpn_num=0.5)


WRONG: list[tuple[str, Any]] = [
    ("size", "large"),
    ("size", 0),
    ("size", 320.5),
    ("size", True),
    ("antialias", 1),
    ("antialias", "yes"),
    ("nms", "0.5"),
    ("nms", 1.5),
    ("nms", float("nan")),
    ("nms", None),
    ("rpn_lambda", float("inf")),
    ("score_threshold", -0.1),
    ("max_det", 0),
    ("dropout", 2),
    ("norm", "instance"),
    ("rpn_class_normaliser", "all"),
    ("rpn_class_normaliser", 0),
    ("anchor_sizes", []),
    ("anchor_sizes", [[]]),
    ("anchor_sizes", [32, 64]),
    ("anchor_sizes", [[32], ["64"]]),
    ("anchor_ratios", [1, -1]),
    ("mean", [0.5, 0.5]),
    ("std", [0.2, 0.2, 0]),
    ("box_delta_weights", [10, 10, 5, 0]),
    ("region_background_iou", 0.5),
    ("region_positive_iou", 0),
    ("rpn_positive_iou", 0),
    ("rpn_negative_iou", 0),
    ("rpn_channels", 0),
    ("candidates", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused_with_what_the_field_takes(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"field {name} cannot be .*: it takes .*\w"):
        changed(**{name: value})


def test_what_may_be_nothing() -> None:
    assert changed(rpn_channels=None, candidates=None, roi_sampling_ratio=0, rpn_beta=0)["rpn_channels"] is None


@pytest.mark.parametrize("config", ZOO.values(), ids=ZOO)
def test_every_default_is_a_value_its_field_takes(config: DetectorConfig) -> None:
    for name, value in values_of(config).items():
        assert configure(config, {name: value}) is not None


def test_a_size_alone_keeps_the_ratio_to_the_longest_side() -> None:
    assert changed(size=400)["max_size"] == 666
    assert changed(size=400, max_size=900)["max_size"] == 900


def test_resize_rule() -> None:
    image = configure(MODERN, {"resize": "fixed", "size": 512, "antialias": True, "rounding": "nearest"}).image
    assert image.resizing == Resize("fixed", 512, image.max_size, True, "nearest")


def test_off_is_a_text_where_it_is_a_choice() -> None:
    """YAML 1.1 reads it as a truth value."""
    soft = named("faster_rcnn_tiny_fpn")
    assert isinstance(soft, TwoStageConfig)
    assert soft.postprocess.soft_nms == "linear"
    assert configure(soft, {"soft_nms": False}).postprocess.soft_nms == "off"
    with pytest.raises(UsageError, match="field norm cannot be False"):
        configure(soft, {"norm": False})


def test_a_component_is_answered_with_its_values() -> None:
    with pytest.raises(UsageError, match=r"rpn is a component of the model: set one of its values \(.*rpn\.nms"):
        configure(MODERN, {"rpn": 0.5})
