"""Random weights for the reference detectors, and the comparison of what they find with ours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from twostage.data.batch import Batch, Originals
from twostage.models.build import Model
from twostage.parity.reference.network import linear
from twostage.parity.reference.steps import Found, Observer


def balancing(state: dict[str, Tensor]) -> Observer:
    """Changes the biases of the layers that score classes while a reference runs, so that no class wins everywhere."""

    def observe(stage: str, values: Tensor) -> None:
        if f"{stage}.bias" in state:
            bias = state[f"{stage}.bias"] - linear(values, state, stage).mean(dim=0)
            state[f"{stage}.bias"] = bias.float().to(bias.dtype)

    return observe


def make_state(
    shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, factors: Mapping[str, float]
) -> dict[str, Tensor]:
    """Random weights with which a network neither dies nor explodes, and whose detections differ in class and score.

    `factors` scale the weights of layers by the end of their names.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            value *= (2 / math.prod(shape[1:])) ** 0.5
        elif "running_var" in name:
            value = 0.5 + value.abs() / 4
        elif name.endswith(("norm.weight", "norm3.weight")) or ("bn" in name and name.endswith("weight")):
            value = (0.25 if "3." in name[-14:] else 0.8) + value / 20
        else:
            value *= 0.05
        value *= next((factor for part, factor in factors.items() if name.endswith(f"{part}.weight")), 1)
        state[name] = value.float().to(dtype)  # a model is loaded in float32
    return state


def on_canvas(small: np.ndarray, dtype: torch.dtype, divisor: int) -> Batch:
    """A resized image alone, padded to a multiple of so many pixels."""
    height, width = small.shape[:2]
    image = torch.tensor(small, dtype=dtype).permute(2, 0, 1) / 255
    batch = Batch(image[None], torch.tensor([[height, width]]))
    return batch.on_canvas(-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def require_same(
    model: Model, small: np.ndarray, expected: Found, dtype: torch.dtype, shape: tuple[int, int] | None = None
) -> None:
    """That a model finds the same objects in a resized image: one to one, whatever the order of equal scores.

    With `shape`, the height and width of the image before it was resized, boxes are compared on that.
    """
    model = model.to(dtype)
    model.normalize.pixel_mean, model.normalize.pixel_std = (
        torch.tensor(values, dtype=dtype)[:, None, None] for values in (model.config.image.mean, model.config.image.std)
    )
    batch = on_canvas(small, dtype, model.config.image.divisor)
    scale = torch.ones(4, dtype=dtype)
    if shape is not None:
        resize = model.config.image.resizing
        own = [torch.tensor([each(*shape)], dtype=dtype) for each in (resize.factors, resize.extent)]
        batch = replace(batch, originals=Originals(torch.tensor([shape]), *own))
        scale = own[0][0].flip(0).repeat(2)
    with torch.no_grad():
        found = model(batch)
    found = found._replace(boxes=found.boxes * scale)
    count = len(expected.boxes)
    assert found.valid.sum() == count > 10
    assert len(expected.labels.unique()) > 2
    labels = found.labels[0, :count]
    distance = (found.boxes[0, :count, None] - expected.boxes).abs().amax(2)
    near, partner = distance.where(labels[:, None] == expected.labels, torch.inf).min(dim=1)
    assert sorted(partner.tolist()) == list(range(count))
    pixels, scores = {torch.float32: (1e-2, 1e-4), torch.float64: (1e-9, 1e-9)}[dtype]
    assert near.max() <= pixels
    torch.testing.assert_close(found.scores[0, :count], expected.scores[partner], atol=scores, rtol=0)
    if expected.masks is not None:
        torch.testing.assert_close(found.masks[0, :count], expected.masks[partner], atol=10 * scores, rtol=0)
