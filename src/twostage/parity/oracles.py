"""The other side of a comparison: detections from a file, from another detector, or from a reference of a project."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from twostage.data.dataset import Dataset
from twostage.errors import DataError
from twostage.evaluation.results import Accumulator, Results
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.heads.bodies import Res5Config
from twostage.models.image import ImageConfig
from twostage.models.regions.pooling import RoIAlignConfig, RoIPoolConfig
from twostage.ops.masks import encode
from twostage.ops.paste import paste
from twostage.parity.divergence import Trace, in_order
from twostage.parity.reference import (
    detectron,
    detectron2,
    mmdetection,
    py_faster_rcnn,
    simple_faster_rcnn,
    torchvision,
)
from twostage.parity.reference.steps import Found, Rules
from twostage.parity.reference.vgg import Numbers
from twostage.parity.variants import Pixels
from twostage.weights.pickled import Checkpoint, coco_names

_TRACED = ("image", "maps.level0", "objectness.level0", "deltas.level0", "proposals.boxes")
THRESHOLD = 0.5  # of a mask's pixel, in every project
# Their boxes come back by one factor for both axes.
_BY_ONE_FACTOR = {
    "detectron": detectron,
    "py-faster-rcnn": py_faster_rcnn,
    "simple-faster-rcnn": simple_faster_rcnn,
}


class Answer(NamedTuple):
    """What is found in an image, on its own pixels: boxes, scores, classes from 0, and masks or None."""

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    class_ids: Int[np.ndarray, " n"]
    masks: Sequence[dict] | None


class Oracle(NamedTuple):
    """Something else that finds objects in images (RGB) on one canvas, and what it is.

    `trace` gives the stages of an image (`divergence.stages_of`); None where they cannot be seen.
    """

    name: str
    detect: Callable[[Sequence[Pixels]], list[Answer]]
    trace: Callable[[Pixels], Trace] | None = None


def reference_of(
    checkpoint: Checkpoint, source: str, config: DetectorConfig, settings: Mapping[str, Any] | None = None
) -> Oracle:
    """The reference of a project for a checkpoint of it, with `settings` as the project's own configuration has them.

    Sizes of images, thresholds and numbers of boxes, which are no conventions, are those of `config`. Raises DataError
    for a detector that the reference does not cover, some at the first image.
    """
    state, where = checkpoint.state, str(checkpoint.path)
    if source == "torchvision":
        try:
            return Oracle("torchvision itself", partial(_of_torchvision, torchvision.build(state, config, where)))
        except RuntimeError as error:
            raise _uncovered(where, source, str(error).split("\n")[0]) from None
    if source in _BY_ONE_FACTOR:
        return _by_one_factor(checkpoint, source, config, settings or checkpoint.settings)
    if (other := _not_covered(config)) is not None:
        raise _uncovered(where, source, other)
    project = {"detectron2": detectron2, "mmdetection": mmdetection}[source]

    def detect(images: Sequence[Pixels]) -> list[Answer]:
        """What the reference finds in images on one canvas."""
        try:
            rules = _with_numbers(project.rules_of(state, settings or checkpoint.settings), config)
            smalls = [project.resized(image, rules) for image in images]
            canvas = (max(small.shape[0] for small in smalls), max(small.shape[1] for small in smalls))
            founds = [project.detect(state, small, rules, canvas=canvas) for small in smalls]
            return [_on_image(*each) for each in zip(founds, smalls, images, strict=True)]
        except (KeyError, IndexError, StopIteration, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise _uncovered(where, source, repr(error)) from None

    def trace(image: Pixels) -> Trace:
        """The stages of the reference."""
        rules = _with_numbers(project.rules_of(state, settings or checkpoint.settings), config)
        kept: Trace = {}
        project.detect(state, project.resized(image, rules), rules, lambda name, x: kept.update({name: in_order(x)}))
        return kept

    return Oracle(f"a reference of {source}'s rules", detect, trace)


def _by_one_factor(
    checkpoint: Checkpoint, source: str, config: DetectorConfig, settings: Mapping[str, Any] | None
) -> Oracle:
    """The reference of a project whose boxes come back by one factor for both axes."""
    state, project = checkpoint.state, _BY_ONE_FACTOR[source]
    if (other := _not_by_one_factor(config, source)) is not None:
        raise _uncovered(str(checkpoint.path), source, other)
    numbers = _numbers(project.numbers_of(state, settings), config)

    def detect(images: Sequence[Pixels]) -> list[Answer]:
        """What the reference finds in images on one canvas."""
        smalls = [project.resized(image, numbers) for image in images]
        canvas = (max(small.shape[0] for small in smalls), max(small.shape[1] for small in smalls))
        founds = [
            project.detect(state, small, image.shape[:2], numbers, canvas=canvas)
            for small, image in zip(smalls, images, strict=True)
        ]
        return [Answer(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), None) for found in founds]

    def trace(image: Pixels) -> Trace:
        """The stages of the reference."""
        kept: Trace = {}
        project.detect(
            state,
            project.resized(image, numbers),
            image.shape[:2],
            numbers,
            lambda name, x: kept.update({name: in_order(x)}) if name in _TRACED else None,
        )
        return kept

    return Oracle(f"a reference of {source}'s rules", detect, trace)


def _not_by_one_factor(config: DetectorConfig, source: str) -> str | None:
    """What of a configuration these references compute otherwise; None where nothing is."""
    assert isinstance(config, TwoStageConfig)
    if config.postprocess.soft_nms != "off" or config.postprocess.nms_across_classes:
        return "another suppression"
    roi, sampling = config.roi, 2 if config.neck is not None else 0
    if isinstance(roi, RoIPoolConfig) if source == "detectron" else not isinstance(roi, RoIPoolConfig):
        return "another pooling of regions"
    if isinstance(roi, RoIAlignConfig) and (roi.sampling_ratio, roi.aligned) != (sampling, False):
        return "another pooling of regions"
    sizes = () if config.anchors is None else tuple(size for level in config.anchors.sizes for size in level)
    known = {"detectron": ((32, 64, 128, 256, 512),)}.get(source, ((128, 256, 512), (64, 128, 256, 512)))
    if config.anchors is None or config.anchors.ratios != (0.5, 1, 2) or sizes not in known:
        return "other anchors"
    if isinstance(roi, RoIAlignConfig) and roi.size != (7 if config.neck is not None else 14):
        return "another pooling of regions"
    if config.stage is None or config.stage.delta_weights != (10, 10, 5, 5) or config.stage.class_agnostic:
        return "another box regressor"
    backbone = config.backbone
    if isinstance(backbone, ResNetConfig) and backbone.stride_in_1x1 != (backbone.groups == 1):
        return "the stride of its bottlenecks"
    return None


def _numbers(numbers: Numbers, config: DetectorConfig) -> Numbers:
    """The sizes, thresholds and numbers of boxes of a configuration."""
    assert isinstance(config, TwoStageConfig)
    image, rpn, post = config.image, config.rpn, config.postprocess
    assert isinstance(image, ImageConfig)
    assert rpn is not None
    return replace(
        numbers,
        size=image.size,
        max_size=image.max_size,
        rpn_top=rpn.top_test,
        rpn_keep=config.proposals.keep_test,
        rpn_nms=rpn.nms,
        min_size=rpn.min_size,
        score=post.score_threshold,
        nms=post.nms,
        most=post.max_det,
    )


def _uncovered(where: str, source: str, what: str) -> DataError:
    return DataError(
        f"{where}: the reference of {source} does not cover this detector ({what}). Give its detections in these "
        "images, found by the project itself, as a COCO results file: `twostage weights compare`."
    )


def _not_covered(config: DetectorConfig) -> str | None:
    """What of a configuration the references compute otherwise; None where nothing is."""
    if isinstance(config, StagewiseConfig) or config.anchors is None:
        return "it has no anchors"
    if config.postprocess.soft_nms != "off" or config.postprocess.nms_across_classes:
        return "another suppression"
    sizes = [size for level in config.anchors.sizes for size in level]
    usual = [32 * 2 ** (k / 3) for k in range(15)] if isinstance(config, OneStageConfig) else [32, 64, 128, 256, 512]
    if len(sizes) != len(usual) or not np.allclose(sizes, usual, rtol=1e-4) or config.anchors.ratios != (0.5, 1, 2):
        return "other anchors"
    if isinstance(config, OneStageConfig):
        return None if config.retinanet.delta_weights == (1, 1, 1, 1) else "other weights of deltas"
    body = config.box_head.body
    side = 14 if isinstance(body, Res5Config) else 7
    roi = config.roi
    if not isinstance(roi, RoIAlignConfig) or (roi.size, roi.sampling_ratio, roi.aligned) != (side, 0, True):
        return "another pooling of regions"
    stages = config.stage.delta_weights if config.stage is not None else (10, 10, 5, 5)
    if config.rpn is None or config.rpn.delta_weights != (1, 1, 1, 1) or not np.allclose(stages, (10, 10, 5, 5)):
        return "other weights of deltas"
    return None


def _with_numbers(rules: Rules, config: DetectorConfig) -> Rules:
    """The rules with the sizes, thresholds and numbers of boxes of a configuration."""
    image, post = config.image, config.postprocess
    assert isinstance(image, ImageConfig)
    rules = replace(
        rules,
        size=image.size,
        max_size=image.max_size,
        score=post.score_threshold,
        nms=post.nms,
        most=post.max_det,
    )
    if isinstance(config, OneStageConfig):
        return replace(rules, rpn_top=config.retinanet.top)
    assert isinstance(config, TwoStageConfig)
    assert config.rpn is not None
    numbers = {"rpn_top": config.rpn.top_test, "rpn_nms": config.rpn.nms, "rpn_keep": config.proposals.keep_test}
    return replace(rules, **numbers)  # type: ignore[arg-type]


@torch.inference_mode()
def detect_all(oracle: Oracle, images: Sequence[Pixels], batch: int = 1) -> Results:
    """What an oracle finds in every image, so many images on one canvas."""
    gathered = Accumulator()
    for start in range(0, len(images), batch):
        for place, answer in enumerate(oracle.detect(images[start : start + batch]), start):
            gathered.add(place, *answer)
    return gathered.results()


def _on_image(found: Found, small: Pixels, image: Pixels) -> Answer:
    """Detections in a resized image on the pixels of the image."""
    (height, width), (h, w) = image.shape[:2], small.shape[:2]
    factor = torch.tensor([width / w, height / h] * 2, dtype=found.boxes.dtype)
    boxes = (found.boxes * factor).numpy()
    rles: Any = None
    if found.masks is not None:
        grids = found.masks.float().numpy()
        rles = paste(grids, boxes.astype(np.float32), height, width, threshold=THRESHOLD, way="exact")
    return Answer(boxes, found.scores.numpy(), found.labels.numpy(), rles)


def _of_torchvision(model: nn.Module, images: Sequence[Pixels]) -> list[Answer]:
    answers = []
    for found in model([torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in images]):
        ids, labels = COCO_IDS if model.coco else range(1, 1 << 15), found["labels"].tolist()
        known = [place for place, label in enumerate(labels) if label in ids]  # not the rows that no class has
        rles: Any = encode(found["masks"][known, 0].numpy() > THRESHOLD) if "masks" in found else None
        class_ids = np.array([ids.index(labels[place]) for place in known], dtype=np.int64)
        answers.append(Answer(found["boxes"][known].numpy(), found["scores"][known].numpy(), class_ids, rles))
    return answers


def read_results(path: Path, files: Sequence[Path], names: Sequence[str]) -> Results:
    """The detections of a COCO results file in these images.

    Its images are meant by file name, or by the number that a name is; its categories by name, or count from 1, those
    of COCO's classes by COCO's own numbers. Raises DataError as `Results.from_coco`.
    """
    dataset = Dataset.from_samples([(file, np.zeros((0, 4)), []) for file in files], names)
    if all(file.stem.isdecimal() for file in files):
        dataset = replace(dataset, image_ids=np.array([int(file.stem) for file in files]))
    if tuple(names) == coco_names():
        dataset = replace(dataset, category_ids=np.array(COCO_IDS))
    return Results.from_coco(path, dataset)


# COCO numbers its 80 classes from 1 to 90, with holes.
COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
