"""The papers' tables as runs: each study computes the value of every case for one seed.

Values are VOC07 mAP in percent unless the study has another `unit`; the papers' are of VOC 2007 and larger networks.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from twostage.data.augment import Augment
from twostage.data.loader import PrecomputedProposals, training_batches
from twostage.detector import Detector
from twostage.device import choose_device
from twostage.experiments.begin import PROPOSALS
from twostage.experiments.bench import Bench, without_boxes, without_ranking, without_regression
from twostage.models.build import build
from twostage.models.config import TwoStageConfig
from twostage.models.configure import configure
from twostage.models.zoo import named

Values = dict[str, float]


@dataclass(frozen=True)
class Study:
    """A table: its title, the paper, the paper's values by case, and the run."""

    title: str
    source: str
    papers: Mapping[str, float | None]
    run: Callable[[Bench], Values]
    unit: str = "mAP"


SCALES = (32.0, 64.0, 128.0)  # pixels of the resized image: octaves, as the paper's 128, 256 and 512 are
RATIOS = (0.5, 1.0, 2.0)


def _anchors(bench: Bench) -> Values:
    cases = {
        "1 scale, 1 ratio": (SCALES[1:2], (1.0,)),
        "1 scale, 3 ratios": (SCALES[1:2], RATIOS),
        "3 scales, 1 ratio": (SCALES, (1.0,)),
        "3 scales, 3 ratios": (SCALES, RATIOS),
    }
    return {
        name: bench.score(bench.joint(anchor_sizes=(sizes,), anchor_ratios=ratios))
        for name, (sizes, ratios) in cases.items()
    }


def _lambda(bench: Bench) -> Values:
    """With N_cls and N_reg as in the paper, where lambda 10 gives both losses about the same weight."""
    norm = {"rpn_batch": 256, "rpn_class_normaliser": 256.0, "rpn_box_normaliser": "locations"}
    return {f"{value:g}": bench.score(bench.joint(**norm, rpn_lambda=value)) for value in (0.1, 1.0, 10.0, 100.0)}


def _at_test(bench: Bench) -> Values:
    """The detector is trained on selective search's proposals; only those at test change (table 2)."""
    joint, values = bench.joint(), {}

    def add(case: str, network: Detector, keep: int) -> None:
        """The case's value: the Fast R-CNN on so many proposals of another network."""
        fast = bench.detector(bench.fast(), rpn_keep_test=keep)
        values[case] = bench.score(fast, bench.propose(network, top=6000, keep=keep))

    network, plain = bench.detector(joint), without_regression(bench.detector(joint))
    for count in (100, 300, 1000, 2000):
        add(f"{count} proposals", network, count)
    add("6000, without NMS", bench.detector(joint, rpn_nms=1.0), 6000)
    random = without_ranking(bench.detector(joint, rpn_nms=1.0), bench.seed)
    for count in (100, 300, 1000):
        # Neither NMS nor ranking: so many anchors, drawn at random, and moved by their deltas.
        add(f"{count}, without ranking", random, count)
    for count in (300, 1000):
        add(f"{count}, without regression", plain, count)
    return values


def _features(bench: Bench) -> Values:
    """Where proposals are from, and whether the RPN shares the convolutions."""
    return {
        "selective search": bench.score(bench.fast(), bench.setting.val_proposals),
        "RPN, unshared": _unshared(bench),
        "RPN, shared": bench.score(bench.alternating()),
    }


def _stages(bench: Bench) -> Values:
    """All windows of twelve kinds, some 4500 per image, against the proposals of a separate RPN (table 10)."""
    count = 5000
    dense = bench.train(
        "dense",
        "fast_rcnn_tiny",
        model_fields={"proposals": "sliding_window", "rpn_keep_train": count, "rpn_keep_test": count},
    )
    return {"one stage: dense windows": bench.score(dense), "two stages": _unshared(bench)}


def _unshared(bench: Bench) -> float:
    """Step 2's detector on step 1's proposals: two networks."""
    root = bench.alternating().parents[1]
    weights = root / "step-2" / "weights" / "best.safetensors"
    return bench.score(weights, root / "proposals" / "step-1.safetensors")


def _svm(bench: Bench) -> Values:
    """R-CNN, appendix B, and Fast R-CNN, table 8."""
    values: Values = {}
    for name, svm in (("R-CNN", bench.rcnn()), ("Fast R-CNN", bench.with_svms(bench.detector(bench.fast())))):
        values[f"{name}, SVM"] = bench.score(svm, bench.setting.val_proposals)
        values[f"{name}, softmax"] = bench.score(bench.with_softmax(svm), bench.setting.val_proposals)
    return values


def _multi_task(bench: Bench) -> Values:
    """Fast R-CNN, table 6. Stage-wise: the classes first, then the box layer on the fixed features."""
    classes = bench.fast(model_fields={"box_lambda": 0.0})
    together = bench.fast()
    after = bench.train(
        "fast-stagewise",
        "fast_rcnn_tiny",
        weights=str(classes),
        model_fields={"box_lambda": 1.0},  # the weights file has 0
        learn=("boxes",),
        proposals=bench.setting.root / PROPOSALS,
        minutes=bench.setting.options.minutes / 2,
    )
    return {
        "classes alone": bench.score(without_boxes(bench.detector(classes))),
        "multi-task, boxes unused": bench.score(without_boxes(bench.detector(together))),
        "stage-wise": bench.score(after),
        "multi-task": bench.score(together),
    }


def _sampling(bench: Bench) -> Values:
    """Seconds of 128 regions: of 2 images, 64 each, or of 128 images (Fast R-CNN, section 2.3)."""
    few, many = _seconds_of_128(bench, 2), _seconds_of_128(bench, 128)
    return {"hierarchical, 2 images": 1.0, "region-wise, 128 images": many / few}


def _seconds_of_128(bench: Bench, images: int) -> float:
    """Reading, forward and backward pass; many images 16 at a time, since their maps take memory."""
    train, options = bench.setting.train, bench.setting.options
    together, device = min(images, 16), choose_device(options.device)
    torch.manual_seed(bench.seed)
    fields = {"size": options.size, "max_size": 2 * options.size, "region_batch": 128 // images, "roi_size": 6}
    config = cast(TwoStageConfig, configure(named("fast_rcnn_tiny"), fields))
    model = build(config, len(train.names)).to(device).to(memory_format=torch.channels_last).train()
    batches = training_batches(
        train,
        resize=config.image.resizing,
        augment=Augment(),
        batch=together,
        seed=bench.seed,
        divisor=config.image.divisor,
        proposals=PrecomputedProposals(bench.setting.train_proposals, options.windows),
    )
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(images // together):
            loaded = next(batches)
            loss = torch.stack(list(model(loaded.batch.to(device), loaded.targets.to(device)).values())).sum()
            loss.backward()
            float(loss.detach())  # waits for the device
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def _roi(bench: Bench) -> Values:
    return {
        "RoIPool": bench.score(bench.joint()),
        "RoIAlign": bench.score(bench.joint(roi="align", roi_aligned=True)),
    }


def _pyramids(bench: Bench) -> Values:
    names = {
        "a single map": "single",
        "an image pyramid": "image",
        "levels without top-down": "levels",
        "the feature pyramid": "top_down",
    }
    return {
        name: bench.score(bench.train(f"pyramid-{kind}", "faster_rcnn_tiny_fpn", model_fields={"pyramid": kind}))
        for name, kind in names.items()
    }


ALL = {
    "anchors": Study(
        "Anchors",
        "Faster R-CNN, table 8 (VGG16; its one scale 256 x 256)",
        {
            "1 scale, 1 ratio": 66.7,
            "1 scale, 3 ratios": 67.9,
            "3 scales, 1 ratio": 69.8,
            "3 scales, 3 ratios": 69.9,
        },
        _anchors,
    ),
    "rpn_lambda": Study(
        "Lambda, the weight of the RPN's box loss",
        "Faster R-CNN, table 9 (VGG16)",
        {"0.1": 67.2, "1": 68.9, "10": 69.9, "100": 69.1},
        _lambda,
    ),
    "proposals_at_test": Study(
        "Proposals at test, for a detector trained on selective search",
        "Faster R-CNN, table 2 (ZF)",
        {
            "100 proposals": 55.1,
            "300 proposals": 56.8,
            "1000 proposals": 56.3,
            "2000 proposals": None,
            "6000, without NMS": 55.2,
            "100, without ranking": 44.6,
            "300, without ranking": 51.4,
            "1000, without ranking": 55.8,
            "300, without regression": 52.1,
            "1000, without regression": 51.3,
        },
        _at_test,
    ),
    "features": Study(
        "Selective search, or an RPN with its own or with shared convolutions",
        "Faster R-CNN, table 2 (ZF)",
        {"selective search": 58.7, "RPN, unshared": 58.7, "RPN, shared": 59.9},
        _features,
    ),
    "stages": Study(
        "One stage with dense sliding windows, or two stages",
        "Faster R-CNN, table 10 (ZF, one scale)",
        {"one stage: dense windows": 53.8, "two stages": 58.7},
        _stages,
    ),
    "svm": Study(
        "SVM or softmax",
        "R-CNN, appendix B (AlexNet); Fast R-CNN, table 8 (VGG16)",
        {"R-CNN, SVM": 54.2, "R-CNN, softmax": 50.9, "Fast R-CNN, SVM": 66.8, "Fast R-CNN, softmax": 66.9},
        _svm,
    ),
    "multi_task": Study(
        "Multi-task or stage-wise training of classes and boxes",
        "Fast R-CNN, table 6 (CaffeNet)",
        {"classes alone": 52.2, "multi-task, boxes unused": 53.3, "stage-wise": 54.6, "multi-task": 57.1},
        _multi_task,
    ),
    "sampling": Study(
        "Sampling of the 128 regions of a step",
        'Fast R-CNN, section 2.3: "roughly 64x faster"',
        {"hierarchical, 2 images": 1.0, "region-wise, 128 images": 64.0},
        _sampling,
        unit="times the seconds",
    ),
    "roi": Study(
        "RoIPool or RoIAlign, on one map of stride 16",
        "Mask R-CNN, table 2c (ResNet-50-C4, COCO: AP of masks)",
        {"RoIPool": 26.9, "RoIAlign": 30.3},
        _roi,
    ),
    "pyramids": Study(
        "Feature pyramids",
        "FPN, table 3 (ResNet-50, COCO: AP of Fast R-CNN on fixed proposals)",
        {
            "a single map": 31.9,
            "an image pyramid": None,
            "levels without top-down": 24.9,
            "the feature pyramid": 33.9,
        },
        _pyramids,
    ),
}
