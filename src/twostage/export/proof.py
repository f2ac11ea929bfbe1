"""The proof that an exported file finds what its model finds: both on the same images, one to one."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from twostage.data.scenes import make_scene
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.exported import ExportedModel
from twostage.inference.graphs import AnyStages
from twostage.inference.predictor import make_batch, predict_arrays
from twostage.inference.runner import Runner
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.two_stage import Stages
from twostage.parity.agreement import FLOAT32, Tolerance, agreement
from twostage.parity.certificate import Certificate, Compared, Party
from twostage.parity.compare import BATCHES, Photos
from twostage.parity.divergence import Divergence, Trace, first_difference, in_order
from twostage.parity.variants import Pixels


class Rule(NamedTuple):
    """What a file may differ by, and the score from which on its detections are compared.

    Of anchors with exactly equal scores, as on padding, runtimes propose others: two `weak` detections of an image on
    each side need no partner.
    """

    tolerance: Tolerance = FLOAT32
    least_score: float = 0.0
    weak: float = 0.1


# float16 has 11 bits: a box of hundreds of pixels moves by some tenths, and of weak detections soft-NMS keeps others.
# int8 is judged by its AP.
RULES = {
    "fp32": Rule(),
    "fp16": Rule(Tolerance(pixels=1.0, scores=2e-2, masks=5e-2), 0.3),
    "int8": Rule(Tolerance(pixels=2.0, scores=0.1, masks=0.2), 0.3),
}
_SHAPES = ((480, 640), (640, 427), (333, 500), (512, 384))  # of generated images: height, width
_TILE, _ACROSS = 320, 4  # of the crowded image: the side of an image in pixels, and images across


class Example(NamedTuple):
    """An image that both sides see, and how the certificate lists it."""

    image: Pixels
    listed: Compared


def examples_of(photos: Photos | None) -> list[Example]:
    """Photos, or generated scenes without any; then an empty image, and one crowded with the others."""
    if photos is None:
        images = [_scene(k, *shape) for k, shape in enumerate(_SHAPES)]
        examples = [Example(each, Compared.of_pixels("generated: scene", each)) for each in images]
    else:
        examples = [Example(image, Compared.of_file(file, image)) for file, image in zip(*photos, strict=True)]
    # Not of one colour: that would give a model with random weights equal scores, in any order.
    height, width = _SHAPES[0]
    empty = np.add.outer(np.arange(height) // 5, np.arange(width) // 7)[..., None] + np.arange(3)
    empty = empty.astype(np.uint8)
    crowded = _crowded([example.image for example in examples])
    return [
        *examples,
        Example(empty, Compared.of_pixels("generated: nothing on it", empty)),
        Example(crowded, Compared.of_pixels("generated: the images above, side by side", crowded)),
    ]


def prove(
    weights: Path,
    reference: Runner,
    exported: ExportedModel,
    examples: Sequence[Example],
    rule: Rule = RULES["fp32"],
    batches: Sequence[int] = BATCHES,
) -> Certificate:
    """The certificate of an exported file against its model, with so many images at a time."""
    # The thresholds of the model: a file with others cannot follow them.
    images, post = [example.image for example in examples], reference.config.postprocess
    if post.score_threshold < rule.least_score:
        post = replace(post, score_threshold=rule.least_score, soft_nms_min_score=None)
    agreements = {}
    for batch in batches:
        if batch > 1 and exported.session.metadata["pixels"]:  # takes several images of one size alone
            size = images[0].shape[1::-1]
            images = [np.asarray(Image.fromarray(image).resize(size)) for image in images]
        expected, found = (_found(side, images, batch, post) for side in (reference, exported))
        agreements[batch] = agreement(expected, found, len(images), post, rule.tolerance, rule.weak)
    return Certificate(
        Party(exported.path, exported.runtime),
        Party(weights, "twostage"),
        [example.listed for example in examples],
        agreements,
        rule.tolerance,
        explained_by=None,
        least_score=post.score_threshold,
    )


def runtime_versions() -> dict[str, str]:
    """The packages that exports depend on, as far as they are installed."""
    packages = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
    return {name: version(name) for name in packages if find_spec(name) is not None}


@torch.inference_mode()
def first_divergence(expected: Runner, found: Runner, image: Pixels) -> Divergence | None:
    """The first stage of an image's prediction that differs; `found` is a file that shows its stages."""
    batch = make_batch([image], expected.config)
    return first_difference(_trace(expected.stages(batch)), _trace(found.stages(batch)))


def _trace(stages: AnyStages) -> Trace:
    """The stages in order, each `in_order`."""
    trace = {}
    if stages.anchors is not None:
        trace = {
            "objectness": in_order(torch.cat(stages.anchors.logits, dim=1)),
            "deltas": in_order(torch.cat(stages.anchors.deltas, dim=1)),
        }
    trace["proposals.boxes"] = in_order(stages.proposals.boxes[stages.proposals.valid])
    if isinstance(stages, Stages):
        for number, stage in enumerate(stages.predictions):
            valid = stages.proposals.valid
            trace |= {f"head.logits{number}": in_order(stage.logits[valid])}
            trace |= {f"head.deltas{number}": in_order(stage.deltas[valid])}
    return {**trace, "detections.scores": in_order(stages.detections.scores[stages.detections.valid])}


def _found(model: Runner, images: Sequence[Pixels], batch: int, post: PostprocessConfig) -> Results:
    """The detections of every image, so many images on one canvas."""
    gathered = Accumulator()
    for start in range(0, len(images), batch):
        for place, one in enumerate(predict_arrays(model, images[start : start + batch], post), start):
            gathered.add(place, one["boxes"], one["scores"], one["class_ids"], one["masks"])
    return gathered.results()


def _scene(number: int, height: int, width: int) -> Pixels:
    scene = Image.fromarray(make_scene(0, 0, number).image)
    return np.asarray(scene.resize((width, height), Image.Resampling.BICUBIC))


def _crowded(images: Sequence[Pixels]) -> Pixels:
    """Many small copies side by side: more objects than an image has places for."""
    small = [np.asarray(Image.fromarray(image).resize((_TILE, _TILE))) for image in images]
    rows = [np.concatenate([small[(_ACROSS * y + x) % len(small)] for x in range(_ACROSS)], axis=1) for y in range(3)]
    return np.concatenate(rows)
