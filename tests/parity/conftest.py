"""A detector by a reference's rules whose detections differ in class and score, and images for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from foreign_states import detectron2_shapes
from reference_detectors import balancing, make_state
from torch import Tensor

from twostage.data.scenes import HARD, make_scene
from twostage.models.configure import configure
from twostage.parity.reference.detectron2 import detect, resized, rules_of
from twostage.parity.variants import Pixels, Variant
from twostage.weights.importers.detectron2 import from_detectron2

SIZE = 128
FACTORS = {"stem.conv1": 0.01, "objectness_logits": 0.1, "anchor_deltas": 0.1, "cls_score": 1.5, "bbox_pred": 0.5}


@pytest.fixture(scope="session")
def photos() -> list[Pixels]:
    """Of different shapes, none square."""
    scenes = [make_scene(i, 1, 2, style=HARD).image for i in range(3)]
    return [np.ascontiguousarray(scene[: 150 + 40 * i]) for i, scene in enumerate(scenes)]


@pytest.fixture(scope="session")
def state(photos: list[Pixels]) -> dict[str, Tensor]:
    """As detectron2 has it."""
    made = make_state(detectron2_shapes(), torch.float32, FACTORS)
    rules = replace(rules_of(made), size=SIZE)
    detect(made, resized(photos[0], rules), rules, balancing(made))
    return made


@pytest.fixture(scope="session")
def variant(state: dict[str, Tensor]) -> Variant:
    """The same as ours."""
    found = from_detectron2(state)
    config = configure(found.config, {"size": SIZE, "max_size": 1333, "rpn_keep_test": 100})
    return Variant(config, found.tensors, found.num_classes)


@pytest.fixture(scope="session")
def mask_variant() -> Variant:
    """A Mask R-CNN that detects whatever it is shown."""
    found = from_detectron2(make_state(detectron2_shapes(mask=True), torch.float32, FACTORS))
    fields = {"size": SIZE, "max_size": 1333, "rpn_keep_test": 50, "score_threshold": 0.0}
    return Variant(configure(found.config, fields), found.tensors, found.num_classes)
