"""A detector as its user holds it: a model with its class names, on a device, in a precision."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage import __version__
from twostage.data.dataset import Dataset
from twostage.data.loader import evaluation_batches
from twostage.data.proposals import ProposalSet, read_proposals
from twostage.data.workers import default_workers
from twostage.detections import Detections
from twostage.device import choose_device, require_precision
from twostage.distributed import ALONE, Processes
from twostage.errors import DataError, UsageError, nearest
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.predictor import detect_images, find, make_batch, run, to_arrays
from twostage.inference.prepare import prepare
from twostage.inference.proposing import network_proposals
from twostage.inference.sources import Item, expand, is_one_picture
from twostage.inference.views import Views, detect_by_views
from twostage.kinds import described, fits, fitted
from twostage.models.fields import Count, Fields, Share
from twostage.models.proposals.given import of_split
from twostage.models.two_stage import Stages, TwoStage
from twostage.models.zoo import ZOO, rebuild, require_read
from twostage.models.zoo import build as build_model
from twostage.weights.file import Card, load_weights, save_weights
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.named import find_weights
from twostage.weights.torchvision import from_torchvision

SOURCES = {"torchvision": from_torchvision}
ONE_VIEW = Views()


class Detector:
    """Finds the objects of some classes in pictures.

    `model` is the network, `names` the classes in the order of their ids, `name` that of the model in the zoo.
    Made by `load`, `build` or `from_state_dict`.
    """

    def __init__(
        self, model: TwoStage, name: str, names: Sequence[str], *, device: str = "auto", precision: str = "fp32"
    ) -> None:
        self.device = choose_device(device)
        # An impossible precision is said now, not at the first picture.
        self.dtype = require_precision(self.device, precision)
        self.precision = precision
        self.name = name
        self.names = tuple(names)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._fast: tuple[tuple[Any, ...], TwoStage] | None = None

    @property
    def prepared(self) -> TwoStage:
        """The model as predictions run it (`inference.prepare`); made anew where weights or fields changed since.

        A change through a tensor's `.data` leaves no trace, and is not seen.
        """
        tensors = chain(self.model.parameters(), self.model.buffers())
        weights = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        now = (weights, self.model.fields, self.model.rpn and self.model.rpn.fields)
        if self._fast is None or self._fast[0] != now:
            self._fast = now, prepare(self.model, self.dtype)
        return self._fast[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the prepared model: packed weights cannot be copied, and are made again."""
        return {**vars(self), "_fast": None}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "fp32",
        offline: bool = False,
        **fields: Any,
    ) -> "Detector":
        """The detector of a weights file or of a published name; `fields` replace fields of its model.

        A name (`weights.published`) is fetched once and kept, unless `offline`. Raises MissingError when there is no
        such file or it cannot be fetched, DataError when it is none of ours, UsageError for a wrong field.
        """
        card, state = load_weights(find_weights(path, offline=offline))
        _require_known(card, path)
        with Unfilled():
            model = rebuild(card.model, len(card.names), card.fields_with(fields))
            require_read(model, fields)
        load_all(model, state, str(path))
        return cls(model, card.model, card.names, device=device, precision=precision)

    @classmethod
    def build(
        cls, model: str, names: Sequence[str], *, device: str = "auto", precision: str = "fp32", **fields: Any
    ) -> "Detector":
        """A model of the zoo with random weights. Raises UsageError for an unknown model or field."""
        return cls(build_model(model, len(_checked(names)), **fields), model, names, device=device, precision=precision)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        source: str,
        model: str,
        names: Sequence[str],
        device: str = "auto",
        precision: str = "fp32",
        **fields: Any,
    ) -> "Detector":
        """A detector of another project, from its state dict; `source` is `torchvision`.

        A state dict cannot show eps, thresholds or sizes: give them as fields where they are not the model's defaults
        (torchvision's COCO_V1 ResNet-50 has `norm_eps=0.0`). Raises DataError when the weights are not the model's.
        """
        if source not in SOURCES:
            raise UsageError(f"Weights of {source!r} cannot be read. {nearest(source, SOURCES)}")
        built = build_model(model, len(_checked(names)), **fields)
        load_all(built, SOURCES[source](state, len(names)), f"the {source} weights")
        return cls(built, model, names, device=device, precision=precision)

    def save(self, path: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Write the weights file; it is complete or not there at all."""
        card = Card(self.name, self.names, self.model.fields.to_dict(), dict(metrics or {}))
        save_weights(Path(path), self.model.state_dict(), card)

    def predict(
        self,
        source: Any,
        *,
        conf: float = 0.5,
        iou: float | None = None,
        max_det: int | None = None,
        batch: int = 1,
        views: Views = ONE_VIEW,
    ) -> Any:
        """Detections of one picture, or an iterator over those of many.

        One path, array (RGB), tensor or PIL image gives `Detections`; a folder, glob, list, video or `-` an iterator.
        At most `batch` pictures go through the model together, those of one shape, on a processor no more than keep it
        busy; but for rounding no detection depends on it.
        `conf` is the lowest score kept, `iou` the overlap above which the last NMS drops a box, `max_det` the most
        objects an image keeps; None is the model's field. `views` looks at a picture more than once: mirrored, at other
        sizes, in tiles (`inference.views`); `batch` then is of views. Pictures that cannot be read are left out by the
        iterator, which then ends with a DataError that names them all.
        """
        output = self.output(conf, iou, max_det)
        batch = _required("batch", batch, Count)
        found = self._stream(expand(source), output, batch, views)
        return next(iter(found)) if is_one_picture(source) else found

    def trace(self, source: Any) -> Stages:
        """Every stage of the prediction of one picture, on the pixels the network saw; the model's own thresholds."""
        if not is_one_picture(source):
            raise UsageError(f"{source!r:.80}: is not one picture; trace them one by one.")
        (item,) = expand(source)
        if item.image is None:
            raise item.error or UsageError(f"{source}: holds no picture.")
        batch = make_batch([item.image], self.model.fields)
        return run(self.prepared, batch, output=self.model.fields)

    def detect_dataset(
        self,
        dataset: Dataset,
        *,
        batch: int = 1,
        workers: int | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        processes: Processes = ALONE,
        proposals: Path | ProposalSet | None = None,
        views: Views = ONE_VIEW,
    ) -> Results:
        """Detections of every image of a split, for evaluation; the model's own thresholds where none are given.

        `proposals`, or a file of them, take the place of what the model proposes or its source computes.
        `views` as in `predict`, one picture after the other; `workers` then read none ahead. Several `processes`
        (`distributed.joined`) share the images; the leader gets all detections. Raises UsageError where the
        data set's classes are not the detector's: `data.dataset.select_classes` chooses from a data set that has more.
        """
        if dataset.names != self.names:
            raise UsageError(
                f"{dataset.root}: its classes are {', '.join(dataset.names)}, those of the detector "
                f"{', '.join(self.names)}. Evaluate on data with the same classes in the same order."
            )
        output = self.output(conf, iou, max_det)
        fields = self.model.fields
        if not views.plain:
            if proposals is not None:
                raise UsageError("proposals are of whole pictures as they are: leave them out, or the views.")
            return self._looked_at(dataset, output, views, batch, processes)
        if workers is None:
            workers = default_workers(on_cpu=self.device.type == "cpu", sharing=processes.local_world)
        read: Callable[[Dataset], ProposalSet] | None = None
        if proposals is not None:
            read = partial(read_proposals, proposals) if isinstance(proposals, Path) else lambda _: proposals
        loaded = evaluation_batches(
            dataset,
            resize=fields.resizing,
            batch=batch,
            workers=workers,
            divisor=fields.divisor,
            rank=processes.rank,
            world=processes.world,
            proposals=of_split(dataset, fields, read, count=fields.rpn_keep_test),
        )
        gathered = Accumulator()
        model = self.prepared
        for one in loaded:
            found = find(model, one.batch, output=output)
            indices = one.indices.tolist()
            originals = [(int(h), int(w)) for h, w in dataset.sizes[indices]]
            for index, found_one in zip(indices, to_arrays(found, one.batch.sizes, originals, output), strict=True):
                gathered.add(index, found_one["boxes"], found_one["scores"], found_one["class_ids"], found_one["masks"])
        return Accumulator.join(processes.collect(gathered)).results()

    def _looked_at(self, dataset: Dataset, output: Fields, views: Views, batch: int, processes: Processes) -> Results:
        """Detections by several views; each of the processes takes every so many images."""
        gathered = Accumulator()
        for index in range(processes.rank, len(dataset), processes.world):
            image = dataset.image(index)
            found = detect_by_views(self.prepared, image, self.names, output=output, views=views, batch=batch)
            gathered.add(index, found.boxes, found.scores, found.class_ids, found.masks)
        return Accumulator.join(processes.collect(gathered)).results()

    def propose_dataset(
        self,
        dataset: Dataset,
        *,
        batch: int = 1,
        workers: int | None = None,
        after_image: Callable[[int, int], None] = lambda done, all: None,
    ) -> ProposalSet:
        """What the detector's network proposes on every image of a split, of whatever class, for others to use.

        `after_image` is told how many images of how many are done. Raises UsageError where the detector has no such
        network.
        """
        if workers is None:
            workers = default_workers(on_cpu=self.device.type == "cpu")
        return network_proposals(self.prepared, dataset, batch=batch, workers=workers, after_image=after_image)

    def output(self, conf: float | None, iou: float | None, max_det: int | None) -> Fields:
        """The model's fields with other thresholds of the last step; None keeps the model's."""
        given: dict[str, Any] = {}
        if conf is not None:
            given["score_threshold"] = _required("conf", conf, Share)
        if iou is not None:
            given["nms"] = _required("iou", iou, Share)
        if max_det is not None:
            given["max_det"] = _required("max_det", max_det, Count)
        return replace(self.model.fields, **given)

    def _stream(self, items: Iterator[Item], output: Fields, batch: int, views: Views) -> Iterator[Detections]:
        unreadable: list[DataError] = []
        while group := list(islice(items, batch)):
            unreadable += [item.error for item in group if item.error]
            readable = [item for item in group if item.image is not None]
            if not views.plain:
                for item in readable:
                    assert item.image is not None
                    yield detect_by_views(
                        self.prepared, item.image, self.names, output=output, views=views, batch=batch, path=_path(item)
                    )
            elif readable:
                yield from detect_images(
                    self.prepared,
                    [item.image for item in readable if item.image is not None],
                    self.names,
                    output=output,
                    paths=[_path(item) for item in readable],
                )
        if unreadable:
            raise DataError("\n".join(str(error) for error in unreadable))


def _required(name: str, value: Any, kind: Any) -> Any:
    """The value of an argument as its type wants it. Raises UsageError where it does not fit."""
    good = fitted(value, kind)
    if not fits(good, kind):
        raise UsageError(f"{name} is {value!r}, and must be {described(kind)}.")
    return good


def _path(item: Item) -> str | None:
    """A video's frames are told apart by their number: `clip.mp4#17`."""
    return item.path if item.frame is None else f"{item.path}#{item.frame}"


def _require_known(card: Card, path: str | Path) -> None:
    """Raises DataError for a file of a model, or with fields, of a later version."""
    strange = [name for name in card.fields if name not in {f.name for f in fields_of(Fields)}]
    if card.model not in ZOO or strange:
        what = f"the field {strange[0]!r}" if strange else f"the model {card.model!r}"
        raise DataError(
            f"{path}: written by twostage {card.version}; this is {__version__}, which does not know {what}. "
            "Update twostage."
        )


def _checked(names: Sequence[str]) -> Sequence[str]:
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    if not listed or not all(isinstance(name, str) for name in listed) or len(set(listed)) < len(listed):
        raise UsageError(f"names is {names!r}; give the classes as a list of different texts.")
    return listed
