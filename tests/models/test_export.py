from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from detectors import make_model
from torch import Tensor, fx, nn
from torch.export import Dim

from twostage.data.batch import Batch


@pytest.fixture(autouse=True)
def symbols_are_whole_numbers() -> Iterator[None]:
    """While a model is exported its sizes are symbols, which this suite's type checks do not accept as `int`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Inference(nn.Module):
    """Detections from two tensors, as an exported program has its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for value in self.model(Batch(images, sizes)) if value is not None)


def example(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))
    return images, torch.tensor([[height, width], [height - 7, width - 30]] * count)[:count]


# The graph of Faster R-CNN is part of that of Mask R-CNN.
FEW: dict[str, dict[str, int]] = {
    "mask_rcnn": {"rpn_keep_test": 20},
    "hybrid_task_cascade": {"rpn_keep_test": 20},
    "retinanet": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_inference_exports_with_open_batch_height_and_width(name: str) -> None:
    """One graph for every input, because every shape follows from the configuration."""
    model = make_model(f"{name}_tiny_fpn", 3, score_threshold=0.0, max_det=10, **FEW[name]).eval()
    batch, height, width = Dim("batch", max=64), 32 * Dim("height", min=2, max=64), 32 * Dim("width", min=2, max=64)
    program = torch.export.export(
        Inference(model),
        example(2, 128, 160),
        dynamic_shapes={"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}},
        strict=False,
    )
    # Operators under `set_grad_enabled` are in a graph within the graph.
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    operators = {str(node.target) for graph in graphs for node in graph.nodes}
    expected = {"twostage.soft_nms.default"}
    if name != "retinanet":
        expected |= {"twostage.nms.default", "twostage.roi_align.default"}
    assert expected <= operators
    with torch.no_grad():
        for other in (example(2, 128, 160), example(1, 96, 224), example(3, 160, 64)):
            for value, expected in zip(program.module()(*other), Inference(model)(*other), strict=True):
                assert torch.equal(value, expected)
