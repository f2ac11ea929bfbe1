"""The forward pass never makes the host wait for the data: DESIGN, section 2, decision 1.

Ops that registered operators (`twostage::*`) issue in their CPU kernels are exempt and not seen here: a dispatch mode
is off while it runs an operator, and so sees the operator alone. Their kernels for devices are run here on the CPU.
What is left out on the CPU, where values may be read (`models.filled`), is computed here, as on a device.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from detectors import make_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from twostage.data.batch import Batch, Targets
from twostage.data.coverage import Coverage
from twostage.models.heads import mask
from twostage.models.targets import matching
from twostage.ops import convolution
from twostage.ops.accelerator import nms as accelerator_nms
from twostage.ops.accelerator import roi_align as accelerator_roi_align

SIZES = [(64, 80), (48, 90)]
SMALL = {"rpn_top_train": 60, "rpn_top_test": 40, "rpn_keep_train": 30, "rpn_keep_test": 12, "region_batch": 8}
MODELS = {
    "faster_rcnn_tiny_fpn": SMALL,
    "faster_rcnn_resnet18_fpn": SMALL,
    "faster_rcnn_zf": {**SMALL, "head_channels": 32},  # the paper's fields and RoIPool, a tenth of VGG16's time
    "hybrid_task_cascade_tiny_fpn": SMALL,
    "mask_rcnn_tiny_fpn": {**SMALL, "region_sampling": "ohem"},
    "retinanet_tiny_fpn": {"rpn_top_test": 40},
}
READING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Watch(TorchDispatchMode):
    """Counts the operators that read values on the host, and copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if name.startswith("twostage."):
            self.operators[name] += 1
        elif self.reads_data(func, args) or self.copies_to_host(func, args, kwargs):
            self.reads[name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def reads_data(func: Any, args: Any) -> bool:
        if func is torch.ops.aten.index.Tensor or func.overloadpacket is torch.ops.aten.index_put_:
            # Indexing by numbers has a fixed shape, indexing by a mask is a nonzero.
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return any(tag in func.tags for tag in READING)

    @staticmethod
    def copies_to_host(func: Any, args: Any, kwargs: Any) -> bool:
        given = [a for a in args if isinstance(a, Tensor)]
        to = kwargs.get("device")
        if func is torch.ops.aten.copy_.default:
            return args[0].device != args[1].device
        return to is not None and bool(given) and torch.device(to).type != given[0].device.type


class WatchDevice(Watch):
    """The same for the kernels that registered operators have on a device."""

    KERNELS: ClassVar = {
        "twostage.nms.default": accelerator_nms.nms,
        "twostage.roi_align.default": accelerator_roi_align.forward,
        "twostage.roi_align_features_gradient.default": accelerator_roi_align.features_gradient,
        "twostage.roi_align_boxes_gradient.default": accelerator_roi_align.boxes_gradient,
    }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in self.KERNELS:
            self.operators[str(func)] += 1
            with self:
                return self.KERNELS[str(func)](*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded axes are computed as a whole, as on a device, and no forms of a layer are tried."""
    for module in (matching, mask):
        monkeypatch.setattr(module, "filled", lambda valid: valid.shape[1])
    monkeypatch.setattr(convolution, "_is_candidate", lambda *_: False)


def with_masks(targets: Targets) -> Targets:
    """Each object's mask is its box."""
    cells = torch.full((*targets.labels.shape, 112, 112), 255, dtype=torch.uint8)
    return replace(targets, masks=Coverage(targets.boxes.clone(), cells))


def watched(work: Callable[[], Any]) -> Watch:
    with Watch() as watch:
        work()
    return watch


@pytest.mark.parametrize("name", MODELS)
def test_inference_never_reads_the_data(name: str, make_batch: Callable[..., Batch]) -> None:
    model = make_model(name, 3, **MODELS[name]).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        watch = watched(lambda: model(batch))
    assert not watch.reads
    soft = watch.operators["twostage.soft_nms.default"]
    assert soft == (model.config.postprocess.soft_nms != "off")
    # Proposals and detections, whatever the batch; what one stage proposes are detections.
    assert watch.operators["twostage.nms.default"] + soft == (1 if name == "retinanet_tiny_fpn" else 2)


def test_nor_do_the_kernels_of_devices(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    fields = {**SMALL, "candidates": 50, "norm": "frozen"}
    model = make_model("faster_rcnn_resnet18_fpn", 3, **fields).eval()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [20, 0])
    with torch.no_grad(), WatchDevice() as watch:
        detections = model(batch)
    assert not watch.reads
    assert watch.operators == {"twostage.nms.default": 2, "twostage.roi_align.default": 1}
    expected = model(batch)
    for got, want in zip(detections, expected, strict=True):
        torch.testing.assert_close(got, want)
    with WatchDevice() as watch:
        sum(model.train()(batch, targets).values()).backward()
    assert not watch.reads
    assert watch.operators["twostage.roi_align_features_gradient.default"] == 1


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_never_read_the_data(
    name: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = make_model(name, 3, **MODELS[name]).train()
    batch, targets = make_batch(*SIZES), with_masks(make_targets(SIZES, [20, 0]))
    watch = watched(lambda: sum(model(batch, targets).values()).backward())
    assert not watch.reads
    assert watch.operators["twostage.nms.default"] == (name != "retinanet_tiny_fpn")


@pytest.mark.parametrize(
    "fields", [{"soft_nms": "off"}, {"soft_nms": "gaussian"}, {"nms_across_classes": True}, {"roi_sampling_ratio": 0}]
)
def test_nor_does_it_with_other_fields(fields: dict, make_batch: Callable[..., Batch]) -> None:
    model = make_model("faster_rcnn_tiny_fpn", 3, **SMALL, **fields).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        assert not watched(lambda: model(batch)).reads


def test_the_number_of_calls_depends_on_neither_images_nor_classes(make_batch: Callable[..., Batch]) -> None:
    """There is no Python loop over either."""
    # A reshape of one image need not copy; a slice never does, and one of all is named otherwise or left out.
    reshaping = ("view", "_unsafe_view", "clone", "slice", "alias")

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += func.overloadpacket.__name__ not in reshaping
            return func(*args, **(kwargs or {}))

    counts = set()
    for images, classes in ((1, 2), (2, 2), (4, 30)):
        model = make_model("faster_rcnn_tiny_fpn", classes, **SMALL).eval()
        batch = make_batch(*[(64, 64)] * images)
        with torch.no_grad(), Count() as count:
            model(batch)
        counts.add(count.calls)
    assert len(counts) == 1


x = torch.tensor([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "read",
    [
        lambda: x.nonzero(),
        lambda: x.max().item(),
        lambda: bool((x > 0).all()),
        lambda: int(x.sum()),
        lambda: x[x > 0],
        lambda: x.clone().__setitem__(x > 1, torch.ones(1)),
        lambda: x.masked_select(x > 0),
        lambda: torch.where(x > 0),
        lambda: x.unique(),
        lambda: torch.equal(x, x),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
        lambda: torch.zeros(4)[: int(x.sum())],
        lambda: torch.empty(2, device="meta").copy_(torch.ones(2)),
        lambda: torch.ones(2).to("meta"),
    ],
)
def test_the_watch_counts(read: Callable[[], Any]) -> None:
    assert sum(watched(read).reads.values()) == 1


def test_the_watch_is_silent_about_indexing_by_numbers() -> None:
    assert not watched(lambda: x[torch.tensor([0, 1])]).reads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_is_never_waited_for(
    name: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """As CUDA itself reports it; here the operators' kernels count too."""
    model = make_model(name, 3, **MODELS[name]).cuda()
    batch, targets = make_batch(*SIZES).to("cuda"), with_masks(make_targets(SIZES, [20, 0])).to("cuda")
    for mode in ("default", "error"):  # the first time libraries load and measure
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = sum(model.train()(batch, targets).values())
            loss.backward()
            with torch.no_grad():
                detections = model.eval()(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert detections.scores.isfinite().all()
