import json
from dataclasses import fields
from typing import Any

import pytest

from twostage.data.resize import Resize
from twostage.errors import UsageError
from twostage.models.fields import PAPER, Fields


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
    assert {name: getattr(PAPER, name) for name in expected} == expected


def test_the_modern_numbers_are_torchvisions() -> None:
    """From the signatures of its own classes."""
    from inspect import signature

    from torchvision.models.detection.faster_rcnn import FasterRCNN

    theirs = {name: p.default for name, p in signature(FasterRCNN.__init__).parameters.items()}
    ours = Fields()
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


@pytest.mark.parametrize("start", [Fields(), PAPER])
def test_round_trip_through_json(start: Fields) -> None:
    """The defaults it is read over must not shine through."""
    assert Fields().changed(json.loads(json.dumps(start.to_dict()))) == start
    assert PAPER.changed(json.loads(json.dumps(start.to_dict()))) == start


def test_lists_and_whole_numbers_become_what_the_field_holds() -> None:
    changed = Fields().changed(
        {"anchor_sizes": [[16, 32], [64, 128]], "nms": 1, "rpn_class_normaliser": 256, "mean": [0, 0, 1]}
    )
    assert changed.anchor_sizes == ((16.0, 32.0), (64.0, 128.0))
    numbers = [*changed.anchor_sizes[0], changed.nms, changed.rpn_class_normaliser, *changed.mean]
    assert all(type(number) is float for number in numbers)


def test_an_unknown_field_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no field 'rpn_num'.*Did you mean 'rpn_nms'"):
        Fields().changed({"rpn_num": 0.5})


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
    ("norm", "layer"),
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
    ("rpn_channels", 0),
    ("candidates", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused_with_what_the_field_takes(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"field {name} cannot be .*: it takes .*\w"):
        Fields().changed({name: value})


def test_what_may_be_nothing() -> None:
    assert Fields().changed({"rpn_channels": None, "candidates": None, "roi_sampling_ratio": 0, "rpn_beta": 0})


def test_every_default_is_a_value_its_field_takes() -> None:
    for start in (Fields(), PAPER):
        for field in fields(Fields):
            assert Fields().changed({field.name: getattr(start, field.name)})


def test_a_size_alone_keeps_the_ratio_to_the_longest_side() -> None:
    assert Fields().changed({"size": 400}).max_size == 666
    assert Fields().changed({"size": 400, "max_size": 900}).max_size == 900


def test_resize_rule() -> None:
    changed = Fields().changed({"resize": "fixed", "size": 512, "antialias": True, "rounding": "nearest"})
    assert changed.resizing == Resize("fixed", 512, changed.max_size, True, "nearest")


def test_off_is_a_text_where_it_is_a_choice() -> None:
    """YAML 1.1 reads it as a truth value."""
    assert Fields(soft_nms="linear").changed({"soft_nms": False}).soft_nms == "off"
    with pytest.raises(UsageError, match="field norm cannot be False"):
        Fields().changed({"norm": False})
