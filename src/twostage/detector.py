"""A detector as its user holds it: a model with its class names, on a device, in a precision."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from twostage.data.dataset import Dataset, match_classes
from twostage.data.proposals import ProposalSet, read_proposals
from twostage.data.workers import default_workers
from twostage.detections import Detections
from twostage.device import PRECISIONS, choose_device
from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.errors import UsageError
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.dataset import batches_of, detect_split, detect_split_augmented, propose_split
from twostage.inference.exported import ExportedModel
from twostage.inference.keywords import EvaluateKeywords, PredictKeywords, class_names, required
from twostage.inference.precision import choose_precision
from twostage.inference.prepare import PreparedModel, forward_hooks, prepare
from twostage.inference.runner import Runner
from twostage.inference.sources import expand, is_one_image
from twostage.inference.stream import detect_stream
from twostage.inference.test_time_augmentation import TestTimeAugmentation
from twostage.inspection.trace import Target, Trace, trace
from twostage.models.backbones.provided import ProvidedBackbone, ProvidedConfig
from twostage.models.build import Model, build, with_backbone
from twostage.models.component import Count, CountFromZero, Share
from twostage.models.config import DetectorConfig, OneStageConfig
from twostage.models.configure import configure
from twostage.models.heads.postprocess import PostprocessConfig
from twostage.models.proposals.provided import of_split
from twostage.models.zoo import named
from twostage.weights.convert import imported
from twostage.weights.file import Card, is_exported, load_weights, save_weights
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.named import find_weights

if TYPE_CHECKING:
    from twostage.evaluation.evaluate import Report

Source = str | Path | np.ndarray | Tensor | Image.Image | bytes
ONE_VIEW = TestTimeAugmentation()
CONF = 0.5  # lowest score of a prediction by default


class Detector:
    """Finds the objects of some classes in images.

    `model` is the network, `names` the classes in the order of their ids, `name` that of the model in the zoo.
    `precision` is fp32, bf16 or fp16; `auto` is resolved by `inference.precision`. With `choose_forms` each layer is
    tried in several forms on a CPU, at the first image of a size, and the fastest is kept (`ops.cpu.choice`). Made by
    `load`, `build` or `from_state_dict`. Several threads may predict with one detector at the same time.

    A file of `twostage export` predicts and is evaluated in the same way; it has no `model` to train or save, and is
    traced only where it was exported with its stages.
    """

    def __init__(
        self,
        model: Model | ExportedModel,
        name: str,
        names: Sequence[str],
        *,
        device: str = "auto",
        precision: str = "fp32",
        choose_forms: bool = True,
    ) -> None:
        self.name = name
        self.names = tuple(names)
        self.choose_forms = choose_forms
        self._exported: ExportedModel | None = None
        if isinstance(model, ExportedModel):
            self._exported, self.device = model, model.device
            self.precision, self.dtype = model.precision, torch.float32
        else:
            self.device = choose_device(device)
            # An impossible precision is an error now, not at the first image.
            self.precision = choose_precision(self.device, precision)
            self.dtype = PRECISIONS[self.precision]
            self._model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._prepared: tuple[list[Any], PreparedModel] | None = None
        self._lock = Lock()

    @property
    def model(self) -> Model:
        """The network. Raises UsageError where the detector is an exported file, which has none."""
        if self._exported is not None:
            raise self._exported.has_no_model()
        return self._model

    @property
    def is_exported(self) -> bool:
        """Whether it is an exported file."""
        return self._exported is not None

    @property
    def config(self) -> DetectorConfig:
        """The configuration that predictions follow."""
        return self._model.config if self._exported is None else self._exported.config

    @property
    def runner(self) -> Runner:
        """What predictions run: the prepared model, or the exported file in its runtime."""
        return self.prepared if self._exported is None else self._exported

    @property
    def prepared(self) -> PreparedModel:
        """The model as predictions run it (`inference.prepare`); made again where it was changed since.

        Weights, modules and their forward hooks are looked at. A change through a tensor's `.data` leaves no trace, and
        is not seen.
        """
        state: list[Any] = []
        for module in self.model.modules():
            # Not by `parameters()`, which walks over all modules again, and takes as long as a small layer.
            tensors = chain(module._parameters.values(), module._buffers.values())
            state.append((id(module), *map(tuple, forward_hooks(module))))
            state += [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors if t is not None]
        with self._lock:
            if self._prepared is None or self._prepared[0] != state:
                self._prepared = (
                    state,
                    prepare(self.model, self.dtype, forms="fastest" if self.choose_forms else "first"),
                )
            return self._prepared[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the prepared model: packed weights cannot be copied, and are made again."""
        return {name: value for name, value in vars(self).items() if name not in ("_prepared", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _prepared=None, _lock=Lock())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backbone: nn.Module | None = None,
        device: str = "auto",
        precision: str = "fp32",
        choose_forms: bool = True,
        offline: bool = False,
        **fields: Any,
    ) -> "Detector":
        """The detector of a weights file or of a published name; `fields` replace values of its configuration.

        A name (`weights.published`) is fetched once and kept, unless `offline`. A file of `twostage export` (.onnx,
        .xml, .pt2) runs in its runtime on the CPU (`inference.exported`), and its fields are fixed. `backbone` is the
        module of a detector that was built with one. Raises MissingError when there is no such file or it cannot be
        fetched, DataError when it is none of ours, UsageError for a wrong field.
        """
        file = find_weights(path, offline=offline)
        if is_exported(file):
            if fields or backbone is not None:
                name = next(iter(fields), "backbone")
                raise UsageError(f"{file}: {name} is fixed in an exported file: export it anew, or leave {name} out.")
            exported = ExportedModel.open(file, device=device, precision=precision)
            return cls(exported, exported.card.model, exported.card.names)
        card, state = load_weights(file)
        saved = card.config.backbone
        if backbone is not None and isinstance(saved, ProvidedConfig):
            given = ProvidedBackbone(backbone).config
            if (given.channels, given.strides) != (saved.channels, saved.strides):
                raise UsageError(
                    f"{path}: saved with a backbone of channels {saved.channels} and strides {saved.strides}; the one "
                    f"given has {given.channels} and {given.strides}. Give the same module again."
                )
        with Unfilled():
            model = build(configure(with_backbone(card.config, backbone), fields), len(card.names), backbone)
        load_all(model, state, str(path))
        return cls(model, card.model, card.names, device=device, precision=precision, choose_forms=choose_forms)

    @classmethod
    def build(
        cls,
        model: str,
        names: Sequence[str],
        *,
        backbone: nn.Module | str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        choose_forms: bool = True,
        **fields: Any,
    ) -> "Detector":
        """A model of the zoo with random weights. `backbone` takes the place of the model's own: a module
        (`models.build`), or a network of timm, "timm:NAME".

        Raises UsageError for an unknown model or field.
        """
        config = configure(with_backbone(named(model), backbone), fields)
        built = build(config, len(class_names(names)), None if isinstance(backbone, str) else backbone)
        return cls(built, model, names, device=device, precision=precision, choose_forms=choose_forms)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        source: str,
        model: str | None = None,
        names: Sequence[str],
        settings: str | Path | None = None,
        device: str = "auto",
        precision: str = "fp32",
        choose_forms: bool = True,
        **fields: Any,
    ) -> "Detector":
        """A detector of another project, from its state dict; `source` is one of `weights convert --from`.

        The model is read from the tensors; `model` names a torchvision detector whose tensors are those of another one
        (`faster_rcnn_mobilenet_v3_large_320_fpn`). A state dict cannot show eps, thresholds or sizes: `settings` is the
        project's own configuration file; give what it does not say as fields (torchvision's COCO_V1 ResNet-50 has
        `norm_eps=0.0`).
        Raises DataError when the weights are not a detector's of that project or do not fit the settings.
        """
        found = imported(state, source, len(class_names(names)), model=model, settings=settings)
        built = build(configure(found.config, fields), found.num_classes)
        load_all(built, found.tensors, f"the {source} weights")
        return cls(built, found.model, names, device=device, precision=precision, choose_forms=choose_forms)

    def save(self, path: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Write the weights file; it is complete or not there at all. Raises UsageError for a metric of NaN."""
        numbers = {name: required(f"metrics: {name}", value, float) for name, value in (metrics or {}).items()}
        card = Card(self.name, self.names, self.model.config, numbers)
        save_weights(Path(path), self.model.state_dict(), card)

    @overload
    def predict(self, source: Image.Image | bytes, **options: Unpack[PredictKeywords]) -> Detections: ...

    # A string is a sequence of strings as well: for those this overload, which comes first, is the one.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, source: str | Path | np.ndarray | Tensor, **options: Unpack[PredictKeywords]
    ) -> Detections | Iterator[Detections]: ...

    @overload
    def predict(self, source: Iterable[Source], **options: Unpack[PredictKeywords]) -> Iterator[Detections]: ...

    def predict(
        self,
        source: Source | Iterable[Source],
        *,
        conf: float = CONF,
        iou: float | None = None,
        max_det: int | None = None,
        batch: int = 1,
        views: TestTimeAugmentation = ONE_VIEW,
    ) -> Detections | Iterator[Detections]:
        """Detections of one image, or an iterator over those of many.

        One path, array (RGB), tensor or PIL image gives `Detections`; a folder, glob, list, video or `-` an iterator.
        A type checker sees both types for a path or an array: `Image.open(path)` is one image, `[path]` an iterator.
        At most `batch` images go through the model together, those of one shape, on a CPU no more than keep it busy;
        apart from rounding no detection depends on it. `conf` is the lowest score kept, `iou` the overlap above which
        the last NMS drops a box, `max_det` the maximum number of detections per image; None is the model's value.
        `views` are those of test-time augmentation; `batch` then counts views. Images that cannot be read, or that an
        exported file cannot take, are left out by the iterator, which then ends with a DataError that names them all.
        """
        if self._exported is not None and conf == CONF:  # the default is no lower than the file's
            conf = max(conf, self.config.postprocess.score_threshold)
        postprocess = self.postprocess(conf, iou, max_det)
        batch = required("batch", batch, Count)
        stream = detect_stream(
            self.runner, expand(source), self.names, postprocess=postprocess, batch=batch, views=views
        )
        return next(iter(stream)) if is_one_image(source) else stream

    def trace(self, source: Source | Iterable[Source], target: Target | None = None) -> Trace:
        """Every stage of the prediction of one image (`inspection.trace.Trace`), with the model's own thresholds.

        `target` are its objects, boxes (xyxy pixels) and class ids: the trace then has what anchors and regions would
        learn from them.
        """
        if not is_one_image(source):
            raise UsageError(f"{source!r:.80}: more than one image: trace them one by one.")
        (item,) = expand(source)
        if item.image is None:
            raise item.error or UsageError(f"{source!r:.80}: contains no image.")
        return trace(self.runner, item.image, self.names, path=item.path, target=target)

    def evaluate(self, dataset: Dataset, *, metric: str = "all", **options: Unpack[EvaluateKeywords]) -> "Report":
        """The metrics on a split (`evaluation.evaluate`); `options` are those of `detect_dataset`.

        The data set is opened from files (`data.recognise.open_dataset`) or made in memory. Its classes are matched by
        name (`data.dataset.match_classes`); raises UsageError for one that the detector does not have, and for an
        unknown metric.
        """
        from twostage.evaluation.evaluate import evaluate, require_metric  # with OpenCV, which prediction does without

        require_metric(metric)
        if not isinstance(dataset, Dataset):
            raise UsageError(
                f"dataset is {type(dataset).__name__}: give a Dataset, as data.recognise.open_dataset does."
            )
        dataset = match_classes(dataset, self.names)
        results = self.detect_dataset(dataset, **options)
        conf = options.get("conf")
        floor = self.config.postprocess.score_threshold if conf is None else conf
        most = options.get("max_det")
        return evaluate(
            dataset, results, metric=metric, score_floor=floor, precision=self.precision, max_detections=most
        )

    def detect_dataset(
        self,
        dataset: Dataset,
        *,
        batch: int = 1,
        workers: int | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        processes: Processes = SINGLE_PROCESS,
        proposals: str | Path | ProposalSet | None = None,
        views: TestTimeAugmentation = ONE_VIEW,
    ) -> Results:
        """Detections of every image of a split, for evaluation; the model's own thresholds where none are given.

        `proposals`, or a file of them, take the place of the RPN's or the source's. `views` as in `predict`, one image
        after the other, without `workers`. Several `processes` (`distributed.process_group`) share the images; the main
        one gets all detections. Raises UsageError where the data set's classes are not the detector's, in its order:
        `data.dataset.match_classes` makes them so, `select_classes` chooses from a data set that has more.
        """
        if dataset.names != self.names:
            raise UsageError(
                f"{dataset.root}: its classes are {', '.join(dataset.names) or 'none'}, those of the detector "
                f"{', '.join(self.names)}. data.dataset.match_classes(dataset, detector.names) matches them by name."
            )
        batch, workers = required("batch", batch, Count), required("workers", workers, CountFromZero | None)
        postprocess, config = self.postprocess(conf, iou, max_det), self.config
        if not views.plain:
            if proposals is not None:
                raise UsageError("proposals are for whole images without augmentation: leave them out, or the views.")
            gathered = detect_split_augmented(self.runner, dataset, postprocess, views, batch, processes)
            return Accumulator.join(processes.gather_to_main(gathered)).results()
        if proposals is not None and isinstance(config, OneStageConfig):
            raise UsageError("This detector has one stage: it takes no proposals from elsewhere.")
        if workers is None:
            workers = default_workers(on_cpu=self.device.type == "cpu", sharing=processes.local_world)
        read: Callable[[Dataset], ProposalSet] | None = None
        if proposals is not None:
            some = proposals if isinstance(proposals, ProposalSet) else Path(proposals)
            read = partial(read_proposals, some) if isinstance(some, Path) else lambda _: some
        given = None
        if not isinstance(config, OneStageConfig):
            given = of_split(dataset, config.proposals, read, count=config.proposals.keep_test)
        model = self.runner
        batches = batches_of(model, dataset, batch=batch, workers=workers, processes=processes, proposals=given)
        gathered = detect_split(model, dataset, batches, lambda loaded: model.detect(loaded.batch, postprocess))
        return Accumulator.join(processes.gather_to_main(gathered)).results()

    def propose_dataset(
        self,
        dataset: Dataset,
        *,
        batch: int = 1,
        workers: int | None = None,
        after_image: Callable[[int, int], None] = lambda done, all: None,
    ) -> ProposalSet:
        """The RPN's proposals for every image of a split, for other detectors to use.

        `after_image` is called with the number of images that are done and that of all. Raises UsageError where the
        detector has no RPN.
        """
        batch, workers = required("batch", batch, Count), required("workers", workers, CountFromZero | None)
        if workers is None:
            workers = default_workers(on_cpu=self.device.type == "cpu")
        return propose_split(self.prepared, dataset, batch=batch, workers=workers, after_image=after_image)

    def postprocess(self, conf: float | None, iou: float | None, max_det: int | None) -> PostprocessConfig:
        """The model's post-processing with other thresholds; None keeps the model's."""
        given: dict[str, Any] = {}
        if conf is not None:
            given["score_threshold"] = required("conf", conf, Share)
            given["soft_nms_min_score"] = None  # no score below `conf`
        if iou is not None:
            given["nms"] = required("iou", iou, Share)
        if max_det is not None:
            given["max_det"] = required("max_det", max_det, Count)
        return replace(self.config.postprocess, **given)
