"""A file of `twostage export` in the place of a prepared model: the same batches in, the same detections out."""

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.batch import Batch
from twostage.device import choose_device
from twostage.errors import DataError, MissingError, UsageError
from twostage.inference.graphs import AnyStages
from twostage.inference.precision import choose_precision
from twostage.inference.runtimes import KEY as ABOUT
from twostage.inference.runtimes import FileError, PackageError, Session, open_session, read_metadata
from twostage.inference.signature import Signature, detections_of, inputs_of, stages_of
from twostage.models.config import DetectorConfig
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.image import OwnSizeConfig
from twostage.shell import command
from twostage.weights.file import read_card, require_file

_RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO", ".pt2": "torch"}


class TorchSession:
    """A .pt2 file: a program of `torch.export`, which needs the operators of twostage."""

    def __init__(self, path: Path) -> None:
        extra = {ABOUT: ""}
        try:
            if not zipfile.is_zipfile(path):  # torch would log a traceback
                raise ValueError("it is no archive")
            with warnings.catch_warnings():
                # torch before 2.12: its own buffers, which nothing writes to.
                warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
                program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # a damaged archive raises nearly anything
            raise FileError(
                f"{path}: torch {torch.__version__} cannot read it ({str(error)[:200]!r}). It was written by a newer "
                "torch, or by another program, or is damaged: export the detector again with this torch."
            ) from None
        self.metadata = read_metadata(path, extra[ABOUT])
        self._module = program.module()

    @torch.no_grad()
    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """See `Session`."""
        tensors = [torch.from_numpy(inputs[name]) for name in self.metadata["inputs"]]
        try:
            found = self._module(*tensors)
        except AssertionError as error:  # a guard of the program
            height, width = inputs["images"].shape[2:]
            raise DataError(
                f"{width} x {height} after resizing and padding is too small for a .pt2 file, which needs two cells of "
                f"the coarsest map on each side ({error}). Export with --format onnx, or enlarge the image."
            ) from None
        return {name: tensor.numpy() for name, tensor in zip(self.metadata["outputs"], found, strict=True)}


class ExportedModel:
    """An exported detector in its runtime, with the interface of `prepare.PreparedModel` as far as predictions go."""

    def __init__(self, path: Path, session: Session, precision: str = "fp32") -> None:
        about = session.metadata
        self.path = path
        self.session = session
        self.card = read_card(path, about["card"])
        self.runtime = _RUNTIMES[path.suffix.lower()]
        self.precision = precision if about["precision"] == "fp32" else about["precision"]
        self.signature = Signature(tuple(about["inputs"]), tuple(about["outputs"]))
        self.device = torch.device("cpu")
        image = self.card.config.image
        self.config: DetectorConfig = self.card.config
        if about["pixels"]:  # the file resizes
            self.config = replace(self.config, image=OwnSizeConfig(image.mean, image.std))  # type: ignore[arg-type]

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", precision: str = "fp32") -> "ExportedModel":
        """The model of a file.

        Raises MissingError where the file or its runtime is missing, DataError for a file that is no export of this
        version, UsageError for another device or precision than it can have.
        """
        require_file(path)
        suffix = path.suffix.lower()
        if device != "auto" and choose_device(device).type != "cpu":
            raise UsageError(f"{path}: an exported file runs on the CPU here, not on {device}: leave the device out.")
        chosen = choose_precision(torch.device("cpu"), precision)
        if suffix != ".xml":
            if precision not in ("auto", "fp32"):
                raise UsageError(
                    f"{path}: is computed as it was exported, not in {precision}: leave the precision out."
                )
            chosen = "fp32"
        try:
            session = TorchSession(path) if suffix == ".pt2" else open_session(path, torch.get_num_threads(), chosen)
        except PackageError:
            raise MissingError(
                f"{path}: {_RUNTIMES[suffix]} is not installed: pip install 'twostage[export]'"
            ) from None
        except FileError as error:
            raise DataError(str(error)) from None
        return cls(path, session, chosen)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes open the file anew: a runtime's session cannot be copied."""
        precision = "bf16" if self.precision == "bf16" else "fp32"
        return partial(ExportedModel.open, precision=precision), (self.path,)

    def detect(self, batch: Batch, config: PostprocessConfig) -> BatchDetections:
        """Detections of a batch. Raises UsageError for thresholds that the file cannot follow."""
        self._require_possible(config)
        if self.session.metadata["pixels"] and len(batch.images) > 1 and not _fills(batch):
            parts = [self._run(_cropped(one)) for one in batch.split(1)]
            return self._above(BatchDetections.concatenate(parts), config)
        return self._above(self._run(batch), config)

    def stages(self, batch: Batch) -> AnyStages:
        """Every stage of a prediction but the maps. Raises UsageError for a file that does not show them."""
        self.require_stages()
        return stages_of(self._outputs(batch), batch)

    def require_stages(self) -> None:
        """Raises UsageError for a file that does not show its stages."""
        if "proposal_boxes" not in self.signature.outputs:
            raise UsageError(f"{self.path}: gives detections and no stages. Export it again with --with-stages.")

    def split(self, batch: Batch) -> list[Batch]:
        """The whole batch: a runtime divides its work itself."""
        return [batch]

    def origin(self) -> str:
        """What it was exported from, and for which runtime."""
        weights = self.session.metadata["weights"]
        return f"exported from {weights['file']} (SHA-256 {weights['sha256']}) for {self.runtime} in {self.precision}"

    def has_no_model(self) -> UsageError:
        """The error where more is wanted than predictions."""
        weights = self.session.metadata["weights"]["file"]
        return UsageError(
            f"{self.path}: an exported file has no network to train, save or change: load the weights that it was "
            f"exported from, {weights}."
        )

    def _run(self, batch: Batch) -> BatchDetections:
        return detections_of(self._outputs(batch))

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        if self.session.metadata["pixels"]:
            pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            inputs = {"pixels": pixels}
        else:
            inputs = inputs_of(batch, self.signature)
        found = self.session.run({name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def _above(self, detections: BatchDetections, config: PostprocessConfig) -> BatchDetections:
        """The detections above a threshold that is higher than the file's, and the first of them: all are sorted."""
        keep = detections.valid
        if config.score_threshold > self.config.postprocess.score_threshold:
            keep = keep & (detections.scores > config.score_threshold)
        return detections._replace(valid=keep).each(lambda x: x if x.ndim == 1 else x[:, : config.max_det])

    def _require_possible(self, config: PostprocessConfig) -> None:
        own = self.config.postprocess
        if config.score_threshold < own.score_threshold:
            raise self._fixed("conf", config.score_threshold, f"{own.score_threshold:g}, and goes no lower")
        if config.max_det > own.max_det:
            raise self._fixed("max_det", config.max_det, f"{own.max_det}, and gives no more")
        same = replace(
            own, score_threshold=config.score_threshold, max_det=config.max_det, soft_nms_min_score=None, nms=config.nms
        )
        if replace(config, soft_nms_min_score=None) != same:
            raise UsageError(
                f"{self.path}: has its own suppression inside, and test-time augmentation (--flip, --scales, --tile) "
                f"needs another: predict with the weights, {self.session.metadata['weights']['file']}."
            )
        if config.nms != own.nms:
            raise self._fixed("iou", config.nms, f"{own.nms:g}")

    def _fixed(self, name: str, value: Any, can: str) -> UsageError:
        flag = {"conf": "--conf", "max_det": "--max-det", "iou": "--iou"}[name]
        weights, form = self.session.metadata["weights"]["file"], self.session.metadata["file_format"]
        again = command("twostage", "export", "--weights", weights, "--format", form, flag, f"{value:g}")
        return UsageError(f"{name} {value:g}: {self.path} was exported with {can}. Export it anew: {again} --out DIR")


def _fills(batch: Batch) -> bool:
    """Whether every image is as large as the canvas."""
    return bool((batch.sizes == torch.tensor(batch.canvas)).all())


def _cropped(one: Batch) -> Batch:
    """A batch of one image without padding."""
    height, width = one.sizes[0].tolist()
    return replace(one, images=one.images[:, :, :height, :width])
