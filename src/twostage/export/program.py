"""A detector as a program of `torch.export`, with open numbers of images and sizes."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.export import ExportedProgram

from twostage.errors import MissingError, UsageError
from twostage.export.graph import Graph, example_inputs, open_dimensions
from twostage.inference.prepare import prepare
from twostage.inference.signature import Signature, signature_of
from twostage.models.build import Model
from twostage.models.config import StagewiseConfig, TwoStageConfig
from twostage.models.heads.mask import MaskConfig
from twostage.models.regions.pooling import RoIAlignConfig


@torch.no_grad()
def exported_program(model: Model, *, stages: bool = False) -> tuple[ExportedProgram, Signature]:
    """The program of a model with folded normalisations, and its inputs and outputs, with `stages` all that it has.

    Raises UsageError for a model that cannot be exported, MissingError where torch is too old.
    """
    require_exportable(model)
    prepared = prepare(model, forms="plain")
    signature = signature_of(prepared.config, masks=model.has_masks, stages=stages)
    graph = Graph(prepared, signature).eval()
    example = example_inputs(signature, prepared.config.image.divisor)
    with quiet():
        program = torch.export.export(
            graph,
            example,
            dynamic_shapes={"inputs": open_dimensions(signature)},
            strict=False,
            # A guard would allow only some sizes, as where pooling rounds up.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return program, signature


def require_exportable(model: Model) -> None:
    """Raises UsageError with the reason where a model cannot be exported, MissingError where torch is too old."""
    if "prefer_deferred_runtime_asserts_over_guards" not in inspect.signature(torch.export.export).parameters:
        raise MissingError(
            f"torch {torch.__version__} is too old to export: pip install --upgrade 'torch>=2.9' torchvision"
        )
    config = model.config
    if isinstance(config, StagewiseConfig):
        raise UsageError(
            "R-CNN and SPPnet are not exported: R-CNN crops every region from the image, SPPnet reads each at a scale "
            "of its own, and neither has an operator in ONNX. Export a Fast or Faster R-CNN."
        )
    for name, roi in _poolings(config) if isinstance(config, TwoStageConfig) else ():
        if roi.sampling_ratio == 0 and roi.max_samples is not None:
            raise UsageError(
                f"{name} is 0 (as many samples as a bin has pixels), at most {roi.max_samples}: the runtimes' RoiAlign "
                "has no limit. Export with --set model.roi_max_samples=null, or with a fixed "
                "number: --set model.roi_sampling_ratio=2."
            )


def _poolings(config: TwoStageConfig) -> Iterator[tuple[str, RoIAlignConfig]]:
    if isinstance(config.roi, RoIAlignConfig):
        yield "roi_sampling_ratio", config.roi
    mask: MaskConfig | None = config.mask
    if mask is not None and mask.tower is not None:
        yield "mask.tower.roi.sampling_ratio", mask.tower.roi


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the exporters' warnings, which are about their own insides, are not shown."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir", "nncf")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
