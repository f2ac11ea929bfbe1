"""The module that is exported, and what it is traced with.

Letters: n images on one canvas, h, w its height and width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from twostage.inference.prepare import PreparedModel
from twostage.inference.signature import PROPOSALS, Signature, batch_of, outputs_of, stage_outputs_of


class Graph(nn.Module):
    """From the inputs of a signature to its outputs, with the model's own thresholds."""

    def __init__(self, prepared: PreparedModel, signature: Signature) -> None:
        super().__init__()
        self.model = prepared.model
        self.config = prepared.config
        self.signature = signature

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the signature's order, of the inputs in its order."""
        batch = batch_of(dict(zip(self.signature.inputs, inputs, strict=True)))
        stages = self.model.stages(batch, self.config.postprocess)
        out = outputs_of(stages.detections)
        if len(self.signature.outputs) > len(out):
            out |= stage_outputs_of(stages)
        return tuple(out[name] for name in self.signature.outputs)


def example_inputs(signature: Signature, divisor: int) -> tuple[Tensor, ...]:
    """Inputs to trace a graph with: two images, since a size of 1 would be taken for a constant."""
    height, width = (-(-side // divisor) * divisor for side in (224, 288))
    sizes = torch.tensor([[height - 5, width], [height, width - 7]])
    every = {
        "images": torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)),
        "sizes": sizes,
        "original_sizes": sizes * 2,
        "factors": torch.full((2, 2), 2.0),
        "extents": sizes.float(),
        "proposals": torch.tensor([10.0, 20.0, 90.0, 100.0]).expand(2, 40, 4).contiguous(),
        "proposals_valid": torch.ones(2, 40, dtype=torch.bool),
    }
    return tuple(every[name] for name in signature.inputs)


def open_dimensions(signature: Signature) -> tuple[dict[int, Any], ...]:
    """Which dimensions of the inputs are open, for `torch.export`: images, height and width, and proposals.

    Their smallest sizes are found by the export: two cells of the coarsest map, as a side of one cell would be taken
    for a constant.
    """
    free = torch.export.Dim.DYNAMIC
    axes = {"images": (0, 2, 3), **dict.fromkeys(PROPOSALS, (0, 1))}
    return tuple(dict.fromkeys(axes.get(name, (0,)), free) for name in signature.inputs)
