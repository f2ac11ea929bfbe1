import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectors import make_model, values_of
from torchvision.models import detection

from twostage.data.batch import Batch, GivenProposals, Targets
from twostage.data.coverage import Coverage
from twostage.errors import UsageError
from twostage.models.build import build
from twostage.models.component import leaves
from twostage.models.configure import configure
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.two_stage import Proposed, TwoStage
from twostage.models.zoo import ZOO

SIZES = [(64, 80), (48, 90)]
SMALL = {
    "rpn_top_train": 60,
    "rpn_top_test": 40,
    "rpn_keep_train": 30,
    "rpn_keep_test": 12,
    "rpn_batch": 32,
    "region_batch": 8,
    "rpn_min_size": 1.0,
    "score_threshold": 0.0,
    "max_det": 10,
}
LIGHT = {"faster_rcnn_vgg16": {"head_channels": 32}, "faster_rcnn_zf": {"head_channels": 32}}


def small(name: str, **fields) -> TwoStage:
    return make_model(name, 3, **{**SMALL, **LIGHT.get(name, {}), **fields})


def test_the_names() -> None:
    faster = {
        f"faster_rcnn_{name}"
        for name in (
            "vgg16",
            "zf",
            "resnet50_c4",
            "resnet50_dc5",
            "resnet18_fpn",
            "resnet34_fpn",
            "resnet50_fpn",
            "resnet101_fpn",
            "resnet50_fpn_v2",
            "mobilenet_v3_large_fpn",
            "mobilenet_v3_large_320_fpn",
            "tiny_fpn",
            "tiny",
        )
    }
    fast = {f"fast_rcnn_{name}" for name in ("vgg16", "zf", "tiny")}
    pyramids = ("tiny_fpn", "resnet18_fpn", "resnet50_fpn", "resnet101_fpn")
    families = ("mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "hybrid_task_cascade", "retinanet")
    others = {f"{family}_{name}" for family in families for name in pyramids}
    assert set(ZOO) >= faster | fast | others | {"mask_rcnn_resnet50_fpn_v2", "mask_rcnn_resnet50_c4"}


# One of each kind of body, pyramid, regions and head. The rest differ in depth or fields, and run on the meta device.
KINDS = ("vgg16", "zf", "resnet50_c4", "resnet18_fpn", "resnet50_fpn_v2", "mobilenet_v3_large_320_fpn", "tiny_fpn")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_detects_on_images_of_different_sizes(
    kind: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = small(f"faster_rcnn_{kind}")
    batch, targets = make_batch(*SIZES, divisor=model.config.image.divisor), make_targets(SIZES, [3, 1])
    losses = model.train()(batch, targets)
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box"}
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    with torch.no_grad():
        detections = model.eval()(batch)
    assert detections.boxes.shape == (2, 10, 4)
    for i, (height, width) in enumerate(SIZES):
        boxes = detections.boxes[i][detections.valid[i]]
        assert len(boxes) > 0
        assert boxes.min() >= 0
        assert boxes[:, [0, 2]].max() <= width
        assert boxes[:, [1, 3]].max() <= height


def test_training_predicts_all_anchors_without_a_gradient(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """And all parameters learn nevertheless, from the anchors that are sampled."""
    model = small("faster_rcnn_tiny_fpn", rpn_batch=16).train()
    batch = make_batch(*SIZES, divisor=model.config.image.divisor)
    maps = model.features(batch)
    anchors, proposals = model.propose(maps, batch, train_rpn=True)
    assert not any(logits.requires_grad for logits in anchors.logits)
    losses = model.losses(Proposed(maps, anchors, proposals), batch.sizes, make_targets(SIZES, [3, 1]))
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_shapes_follow_from_the_configuration(name: str) -> None:
    """At the model's own sizes, on the meta device: no value can be read there."""
    with torch.device("meta"):
        model = make_model(name, 7)
        batch = Batch(torch.empty(2, 3, 608, 800), torch.empty(2, 2, dtype=torch.int64))
        targets = Targets(
            boxes=torch.empty(2, 9, 4),
            labels=torch.empty(2, 9, dtype=torch.int64),
            valid=torch.empty(2, 9, dtype=torch.bool),
            seeds=torch.empty(2, dtype=torch.int64),
            masks=Coverage(torch.empty(2, 9, 4), torch.empty(2, 9, 112, 112, dtype=torch.uint8)),
        )
        stagewise = name.startswith(("rcnn", "sppnet"))
        fast = stagewise or name.startswith("fast_rcnn")
        if fast:
            shape = (2, model.config.proposals.keep_test)
            proposals = GivenProposals(torch.empty(*shape, 4), torch.empty(shape), torch.empty(shape, dtype=torch.bool))
            batch = replace(batch, proposals=proposals)
        losses = {} if stagewise else model.train()(batch, targets)
        stages = model.eval().stages(batch)
    if stagewise:
        assert stages.predictions[0].logits.shape == (2, 500, 7)
        assert stages.predictions[0].deltas.shape == (2, 500, 7, 4)
        assert stages.detections.boxes.shape == (2, 100, 4)
        return
    if name.startswith("retinanet"):
        assert set(losses) == {"class", "box"}
        assert stages.detections.boxes.shape == (2, 100, 4)
        return
    stages_of_head = len(stages.predictions)
    assert [loss.shape for loss in losses.values()] == [()] * (
        (0 if fast else 2) + stages_of_head * (3 if model.head.has_masks else 2)
    )
    proposals = model.config.proposals.keep_test
    assert stages.proposals.boxes.shape == (2, proposals, 4)
    assert stages.predictions[-1].logits.shape == (2, proposals, 8)
    stage = model.config.stage
    deltas = 1 if stage is None or stage.class_agnostic else 7
    assert stages.predictions[-1].deltas.shape == (2, proposals, deltas, 4)
    assert stages.detections.boxes.shape == (2, 100, 4)
    if model.head.has_masks:
        side = 14 if "c4" in name else 28
        assert stages.detections.masks.shape == (2, 100, side, side)
    if fast:
        assert stages.anchors is None
        return
    anchors = [len(a) for a in stages.anchors.anchors]
    per_position = len(model.config.anchors.ratios) * len(model.config.anchors.sizes[0])
    assert anchors == [m.shape[2] * m.shape[3] * per_position for m in stages.maps]


def test_vgg16_has_17100_anchors_at_600_x_800() -> None:
    with torch.device("meta"):
        model = make_model("faster_rcnn_vgg16", 20).eval()
        batch = Batch(torch.empty(1, 3, 600, 800), torch.empty(1, 2, dtype=torch.int64))
        stages = model.stages(batch)
    assert stages.maps[0].shape == (1, 512, 38, 50)
    assert [len(a) for a in stages.anchors.anchors] == [17100]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("faster_rcnn_resnet50_fpn", detection.fasterrcnn_resnet50_fpn),
        ("faster_rcnn_resnet50_fpn_v2", detection.fasterrcnn_resnet50_fpn_v2),
        ("faster_rcnn_mobilenet_v3_large_fpn", detection.fasterrcnn_mobilenet_v3_large_fpn),
        ("faster_rcnn_mobilenet_v3_large_320_fpn", detection.fasterrcnn_mobilenet_v3_large_320_fpn),
    ],
)
def test_fields_of_torchvisions_models_are_torchvisions(name: str, theirs: Callable[..., torch.nn.Module]) -> None:
    with torch.device("meta"):
        other = theirs(weights=None, weights_backbone=None, num_classes=4)
        ours = SimpleNamespace(**{n: v for n, v in values_of(ZOO[name]).items() if "." not in n})
    rpn, heads, transform = other.rpn, other.roi_heads, other.transform
    pairs = [
        (transform.min_size, (ours.size,)),
        (transform.max_size, ours.max_size),
        (transform.size_divisible, ours.divisor),
        (tuple(transform.image_mean), ours.mean),
        (tuple(transform.image_std), ours.std),
        (tuple(tuple(s) for s in rpn.anchor_generator.sizes), ours.anchor_sizes),
        (rpn.anchor_generator.aspect_ratios[0], ours.anchor_ratios),
        (rpn._pre_nms_top_n, {"training": ours.rpn_top_train, "testing": ours.rpn_top_test}),
        (rpn._post_nms_top_n, {"training": ours.rpn_keep_train, "testing": ours.rpn_keep_test}),
        (rpn.nms_thresh, ours.rpn_nms),
        (rpn.score_thresh, ours.rpn_score_threshold),
        (rpn.min_size, ours.rpn_min_size),
        (rpn.fg_bg_sampler.batch_size_per_image, ours.rpn_batch),
        (heads.fg_bg_sampler.batch_size_per_image, ours.region_batch),
        (heads.box_coder.weights, ours.box_delta_weights),
        (heads.box_coder.bbox_xform_clip, ours.delta_clamp),
        (heads.box_roi_pool.output_size, (ours.roi_size,) * 2),
        (heads.box_roi_pool.sampling_ratio, ours.roi_sampling_ratio),
        (heads.score_thresh, ours.score_threshold),
        (heads.nms_thresh, ours.nms),
        (heads.detections_per_img, ours.max_det),
    ]
    assert [a for a, _ in pairs] == [b for _, b in pairs]


def test_an_unknown_model_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no model 'faster_rcnn_resnet50'. Did you mean 'faster_rcnn_resnet50_"):
        make_model("faster_rcnn_resnet50", 3)


def test_an_unknown_field_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'dropout'"):
        make_model("faster_rcnn_tiny_fpn", 3, dropuot=0.1)


def test_training_without_targets_is_an_error(make_batch: Callable[..., Batch]) -> None:
    with pytest.raises(ValueError, match=r"needs targets; call model\.eval\(\)"):
        small("faster_rcnn_tiny_fpn").train()(make_batch(*SIZES))


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "group"},
        {"norm": "frozen"},
        {"class_agnostic": True},
        {"nms_across_classes": True},
        {"soft_nms": "off"},
        {"soft_nms": "gaussian"},
        {"rpn_objectness": "softmax", "rpn_channels": 24, "rpn_convs": 2},
        {"roi_sampling_ratio": 0, "roi_aligned": True},
        {"anchor_rounding": "caffe", "anchor_offset": 8.0, "anchors_in_padding": False},
        {"edges": "caffe", "resize_by": "caffe", "rpn_min_size_of": "original", "rpn_min_size_first": True},
        {"rpn_cross_boundary": False, "rpn_class_normaliser": 256, "rpn_box_normaliser": "locations"},
        {"region_truth": False},
        {"anchor_sizes": [[16, 24], [32, 48], [64, 96], [128, 192]], "anchor_ratios": [1]},
        {"resize": "fixed"},
    ],
    ids=str,
)
def test_models_with_other_fields_train_and_detect(
    fields: dict, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = small("faster_rcnn_tiny_fpn", **fields)
    batch = make_batch(*SIZES)
    losses = model.train()(batch, make_targets(SIZES, [2, 0]))
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        detections: BatchDetections = model.eval()(batch)
    assert detections.valid.any()


def test_images_without_objects_train(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    losses = small("faster_rcnn_tiny_fpn").train()(make_batch(*SIZES), make_targets(SIZES, [0, 0]))
    assert losses["box"] == losses["rpn_box"] == 0
    assert losses["class"] > 0
    assert losses["rpn_class"] > 0


def test_300_objects_per_image(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    losses = small("faster_rcnn_tiny_fpn").train()(make_batch(*SIZES), make_targets(SIZES, [300, 2]))
    assert all(loss.isfinite() for loss in losses.values())


def test_one_class(make_batch: Callable[..., Batch]) -> None:
    model = make_model("faster_rcnn_tiny_fpn", 1, **SMALL).eval()
    with torch.no_grad():
        detections = model(make_batch(*SIZES))
    assert detections.labels.eq(0).all()


def test_the_tiny_net_is_tiny() -> None:
    count = sum(p.numel() for p in make_model("faster_rcnn_tiny_fpn", 5).parameters())
    assert count < 2.6e6


BEFORE = json.loads((Path(__file__).parents[1] / "before" / "weights.json").read_text(encoding="utf-8"))


# Values by which weights of other projects differ; with their defaults a model is that of before.
SINCE = {
    "resize_by",
    "edges",
    "clip_multiple",
    "min_size_of",
    "min_size_first",
    "stride_in_1x1",
    "level_size_eps",
    "masks",
    "scores",
    "maps",
    "averaged",
    "clip_before_nms",
    "soft_nms_min_score",
    "groups",
}


@pytest.mark.parametrize("name", BEFORE["models"])
def test_values_and_tensors_are_those_of_before_the_redesign(name: str) -> None:
    """`tests/before/weights.json` was written by the code with one flat class of fields for all models."""
    before = BEFORE["models"][name]
    fields = {**BEFORE["defaults"], **before["fields"]}
    config = configure(ZOO[name], {"semantic_classes": 2} if "semantic_classes" in values_of(ZOO[name]) else {})
    for leaf in leaves(config):
        old = [fields[n] for n in leaf.names if n in fields]
        if old:
            assert json.loads(json.dumps(leaf.value)) == old[0], leaf.path
        else:  # what was fixed by the model's name, or for all models
            assert leaf.path.startswith(("backbone.", "neck.")) or leaf.path.rpartition(".")[2] in SINCE, leaf.path
    with torch.device("meta"):
        tensors = build(config, 3).state_dict()
    if name.startswith("retinanet"):  # its head was the network of proposals
        tensors = {key.replace("head.", "rpn."): tensor for key, tensor in tensors.items()}
    lines = sorted(f"{key} {list(tensor.shape)}" for key, tensor in tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == before["tensors"]


def test_the_c4_mask_rcnn_of_a_seed_has_the_weights_of_before() -> None:
    """Its second stage is drawn before the RPN. The numbers are of the code before the redesign."""
    torch.manual_seed(0)
    state = build(ZOO["mask_rcnn_resnet50_c4"], 2).state_dict()
    first = {
        "rpn.convs.0.weight": (-0.0074751624, -0.0113565745, -0.0075416737),
        "head.box.classes.weight": (-0.0013586172, 0.0052350638, 0.0014540585),
        "head.mask.classes.weight": (-0.0003506487, 0.0015560143, -0.0014867904),
    }
    for name, values in first.items():
        torch.testing.assert_close(state[name].flatten()[:3], torch.tensor(values))
