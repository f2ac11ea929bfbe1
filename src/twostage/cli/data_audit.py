"""`twostage data audit`: labels that are probably wrong, ranked; and the unlabelled images most worth labelling."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.audit_page import ToLabel, write_audit_page
from twostage.cli.classes import matched
from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, verb
from twostage.common_options import SEED, WEIGHTS_FOR_DATA, DataOptions, DetectorOptions, QuietOptions
from twostage.errors import DataError, UsageError
from twostage.folders import new_folder
from twostage.options import option
from twostage.progress import images_bar

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.detector import Detector
    from twostage.inference.sources import Item
    from twostage.inspection.audit import Audit, Judge
    from twostage.training.cross_fitting import FoldDetector

log = logging.getLogger("twostage.cli")

_SHOWN = 5  # suggestions of each kind that are printed
_FOLDS = "folds"  # the folder of the detectors in that of the audit
_PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class AuditOptions(DetectorOptions, DataOptions, QuietOptions):
    weights: str | None = option(
        None,
        f"{WEIGHTS_FOR_DATA} Or the folder of `twostage train --folds`: each fold's detector judges the images it has "
        "not learned from.",
        group="Model",
    )
    folds: int | None = option(
        None,
        "Train this many detectors; each judges the labels of a fold it has not learned from.",
        group="Model",
        low=2,
    )
    model: str = option("faster_rcnn_lite0_fpn", "With --folds: the model in the zoo.", group="Model")
    minutes: float = option(5.0, "With --folds: minutes of training for each.", group="Model", low=0.01)
    size: int | None = option(
        None,
        "Shortest side of the image, in pixels (default: the detector's; with --folds what `train` chooses).",
        group="Images",
        low=1,
    )
    seed: int = option(0, SEED, group="Run", low=0)
    split: str | None = option(None, "Split to audit (default: train, else trainval, else the first).", group="Data")
    most: int = option(50, "Suggestions of each kind on the page and in the files for tools.", group="Output", low=1)
    next: int = option(0, "Also choose this many of the --unlabelled images to label next.", group="Output", low=0)
    unlabelled: str | None = option(None, "Images without labels: a folder, a file or a pattern.", group="Data")
    image_prefix: str = option(
        "/data/local-files/?d=",
        "What label_studio.json puts before the names of images: the address of Label Studio's local storage.",
        group="Output",
    )
    out: Path = option(
        help="New folder for the page, the list and the files for CVAT and Label Studio.", group="Output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.weights is None) == (self.folds is None):
            given = "both" if self.folds else "neither"
            raise UsageError(f"{given} of weights and folds given: give one of them")
        if (self.next > 0) != (self.unlabelled is not None):
            missing, given = ("unlabelled", "next") if self.next else ("next", "unlabelled")
            raise UsageError(f"{given} is given without {missing}: --next 20 --unlabelled FOLDER")
        for name in ("model", "minutes", "seed"):
            if self.folds is None and getattr(self, name) != getattr(AuditOptions, name):
                raise UsageError(f"{name} is for training: give it with --folds, or leave it out")


@verb(AuditOptions)
def audit(options: AuditOptions) -> Outcome:
    """List labels that are probably wrong: missing ones, wrong classes, loose boxes, duplicates. DATA is not changed.

    Two stages, and the mirrored image, disagree where labels are wrong. --out gets a page (index.html), the list
    (suggestions.json), and pre-annotations for CVAT (cvat.xml) and Label Studio (label_studio.json).
    """
    from twostage.inference.sources import expand
    from twostage.inspection.audit import audit
    from twostage.inspection.evidence import two_stage_runner

    unlabelled = expand(options.unlabelled or ())  # a wrong path is an error now, not after the audit
    dataset = _open(options)
    if options.folds is not None:
        _new_out(options)
    judges, detector = _judges(options, dataset)
    two_stage_runner(detector.runner)
    dataset = matched(dataset, detector.names)
    if options.folds is None:
        _new_out(options)
    with images_bar("labels", quiet=options.quiet) as after_image:
        found = audit(dataset, judges, after_image)
    to_label = list(_to_label(options, unlabelled, detector, dataset)) if options.next else []
    _write(options, found, to_label)
    print("\n".join(_lines(found, to_label)))
    print(f"\nOpen {options.out / _PAGE} in a browser; cvat.xml and label_studio.json beside it are for import.")
    chosen = [one.image.to_dict(one.name) for one in to_label]
    return Outcome({"out": options.out, "split": dataset.split, **found.to_dict(options.most), "next": chosen})


def _open(options: AuditOptions) -> "Dataset":
    from twostage.data.recognise import default_splits, find_layout, open_dataset

    layout = find_layout(options.data)
    split = options.split or default_splits(layout)[0] or layout.splits[0]
    print(f"{layout}; audit of {split!r}")
    return open_dataset(
        options.data,
        split=split,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
        on_error="skip",
    )


def _new_out(options: AuditOptions) -> None:
    """Make the folder; one in which the training of the folds was stopped is gone on with."""
    if options.folds is None or not _stopped(options):
        new_folder(options.out, "--out")


def _stopped(options: AuditOptions) -> bool:
    from twostage.run_config import CONFIG

    return (options.out / _FOLDS / CONFIG).exists() and not (options.out / _PAGE).exists()


def _judges(options: AuditOptions, dataset: "Dataset") -> "tuple[Iterator[Judge], Detector]":
    """Detectors with the images that they judge, each loaded when it is needed; and the first of them."""
    import numpy as np

    from twostage.training.cross_fitting import FoldDetector, cross_fit, fold_detectors, is_folds_run
    from twostage.training.folder import naming_resume

    if options.folds is not None:
        with naming_resume("the same command"):
            folds = cross_fit(dataset, _training(options))
    elif options.weights is not None and is_folds_run(Path(options.weights)):
        folds = fold_detectors(Path(options.weights), dataset)
    else:
        assert options.weights is not None
        folds = [FoldDetector(Path(options.weights), np.arange(len(dataset)))]
        _warn_learned(options.weights, dataset, offline=options.offline)
    first = load_detector(str(folds[0].weights), options)

    return _in_turn(options, folds, first), first


def _in_turn(options: AuditOptions, folds: "Sequence[FoldDetector]", first: "Detector") -> "Iterator[Judge]":
    from twostage.inspection.audit import Judge

    for number, fold in enumerate(folds):
        detector = load_detector(str(fold.weights), options) if number else first
        if detector.names != first.names:
            raise UsageError(
                f"{fold.weights}: its classes are {', '.join(detector.names)}, those of the first fold "
                f"{', '.join(first.names)}. Train all folds on the same data."
            )
        yield Judge(detector.runner, fold.images.tolist())


def _training(options: AuditOptions) -> Any:
    from twostage.training.options import TrainOptions

    folder = options.out / _FOLDS
    where: dict[str, Any] = {"resume": folder} if _stopped(options) else {"out": folder}
    return TrainOptions(
        options.data,
        model=options.model,
        train_split=options.split,
        folds=options.folds,
        minutes=options.minutes,
        seed=options.seed,
        size=options.size,
        max_size=options.max_size,
        model_fields=options.model_fields,
        device=options.device,
        offline=options.offline,
        quiet=options.quiet,
        **where,
    )


def _warn_learned(weights: str, dataset: "Dataset", *, offline: bool) -> None:
    """Warn where the weights were trained on the labels that they are to judge."""
    from twostage.data.duplicates import may_share
    from twostage.weights.file import is_exported, load_weights
    from twostage.weights.named import find_weights

    file = find_weights(weights, offline=offline)
    if is_exported(file):
        return  # the audit itself refuses it
    origin = load_weights(file)[0].origin
    split = str(origin.get("split", ""))
    if origin.get("data") == dataset.root.name and split and may_share(split, dataset.split):
        log.warning(
            "%s was trained on the split %r of this data set: it has learned some of the faults, and finds fewer. "
            "--folds 3 trains detectors that judge only labels they have not learned.",
            *(weights, split),
        )


def _to_label(
    options: AuditOptions, unlabelled: "Iterator[Item]", detector: "Detector", dataset: "Dataset"
) -> Iterator[ToLabel]:
    """The images to label next, with the boxes found in them; those of the data set are left out, and with a warning
    those that cannot be read, and videos."""
    import numpy as np

    from twostage.data.images import read_image
    from twostage.inspection.evidence import Evidence, LabelBoxes, evidence, two_stage_runner
    from twostage.inspection.next_images import next_images

    none = LabelBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    runner = two_stage_runner(detector.runner)
    known = {dataset.path(index).resolve() for index in range(len(dataset))}
    names: list[str] = []
    seen: dict[int, Evidence] = {}
    labelled = 0
    videos: Counter[str] = Counter()
    for item in unlabelled:
        if item.path is not None and Path(item.path).resolve() in known:
            labelled += 1
            continue
        if item.image is None or item.path is None:
            log.warning("Left out: %s", item.error)
            continue
        if not Path(item.path).is_file():
            videos[item.path.rpartition("#")[0]] += 1
            continue
        seen[len(names)] = evidence(runner, item.image, none)
        names.append(item.path)
    for video, frames in videos.items():
        log.warning(
            "Left out: %s: its %d frames are no files that could be labelled: save them as images.", video, frames
        )
    if labelled:
        print(f"Left out of {options.unlabelled}: {labelled} images that the data set has already")
    if not names:
        raise DataError(f"--unlabelled {options.unlabelled}: no image that can be read and is not in the data set.")
    for one in next_images(seen, options.next):
        found = seen[one.image]
        sure = ((found.scores + found.mirrored) / 2).max(axis=1, initial=0.0) >= 0.5
        yield ToLabel(one, names[one.image], read_image(Path(names[one.image])), found.boxes[sure])


def _write(options: AuditOptions, found: "Audit", to_label: list[ToLabel]) -> None:
    from twostage.atomic import write_json, write_text
    from twostage.inspection.preannotations import cvat_xml, label_studio

    data, first = found.dataset, found.first(options.most)
    title = f"Label audit: {options.data.resolve().name}, {data.split}"
    judge = f"{options.folds} detectors, cross-fitted" if options.folds else options.weights
    lead = f"{len(data)} images with {len(data.labels)} labels, judged by {judge}. The data set was not changed."
    write_json(options.out / "suggestions.json", found.to_dict())
    write_text(options.out / "cvat.xml", cvat_xml(data, first, title))
    write_text(
        options.out / "label_studio.json", json.dumps(label_studio(data, first, prefix=options.image_prefix), indent=1)
    )
    if to_label:
        write_json(options.out / "next.json", [one.image.to_dict(one.name) for one in to_label])
    write_audit_page(options.out / _PAGE, found, title=title, lead=lead, most=options.most, to_label=to_label)


def _lines(found: "Audit", to_label: list[ToLabel]) -> Iterator[str]:
    """The number of suggestions of each kind with the first ones, and the images to label next."""
    from twostage.inspection.suggestion import TITLES

    for kind, (every, likely) in found.counts().items():
        yield f"{TITLES[kind]}: {every}, of which {likely} are likely"
        for one in found.of(kind)[:_SHOWN]:
            yield f"  {one.value:.2f}  {found.dataset.file_name(one.image)}: {one.why}"
    if to_label:
        yield "Images to label next:"
        for picked in to_label[:_SHOWN]:
            yield f"  {picked.image.worth:.2f}  {picked.name}: {picked.image.why}"
