"""`twostage data proposals`: where objects might be, and how many of the data set's objects are among it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, to_json, verb
from twostage.errors import UsageError, nearest
from twostage.folders import whole_folder
from twostage.options import option, validate
from twostage.weights.published import PUBLISHED

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.data.proposals import ProposalSet
    from twostage.evaluation.recall import ProposalRecall

_COUNTS = (50, 100, 300, 500, 1000, 2000)
_SHOWN_IOUS = (0.5, 0.7, 0.9)
_COMPUTED = ("selective_search", "selective_search_quality", "sliding_window")


@dataclass(frozen=True)
class ProposalsOptions:
    """From which sources, of which images, and what is kept of them."""

    data: Path = option(help="Data set in VOC, COCO or YOLO layout.")
    _: KW_ONLY
    source: tuple[str, ...] = option(
        ("selective_search",),
        "selective_search, selective_search_quality, sliding_window, a detector's weights, a proposals file: any of "
        "them, beside each other.",
    )
    split: tuple[str, ...] = option((), "Splits (default: all).", group="Data")
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    keep: int = option(2000, "Boxes an image kept in the files.", group="Proposals", low=1)
    counts: tuple[int, ...] = option(_COUNTS, "Numbers of proposals to tell the recall of.", group="Proposals", low=1)
    width: int = option(500, "Selective search shrinks wider pictures to this.", group="Proposals", low=16)
    seed: int = option(0, "Of the draw that ranks regions and windows.", group="Proposals", low=0)
    model_fields: dict[str, Any] = option({}, "Fields of the detector, as --set model.FIELD=VALUE.", group="Model")
    size: int | None = option(None, "Shortest side for the detector (default: as trained).", group="Model", low=1)
    max_size: int | None = option(None, "Longest side for it (default: as trained).", group="Model", low=1)
    batch: int = option(1, "Images it takes at once.", group="Model", low=1)
    workers: int | None = option(None, "Threads, or processes that read for a detector.", group="Run", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the detector.", group="Run")
    offline: bool = option(False, "Never reach for the network.", group="Run")
    out: Path | None = option(
        None, "New folder for a file of each source, to give by --proposals, and the recall's plot.", group="Output"
    )
    quiet: bool = option(False, "Results and warnings only.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if not self.source or not self.counts:
            raise UsageError(f"{'counts' if self.source else 'source'} is empty: name at least one")
        for name in self.source:
            if name not in (*_COMPUTED, *PUBLISHED) and not Path(name).suffix and not Path(name).exists():
                raise UsageError(
                    f"source: there is no source {name!r}, nor a file of that name. {nearest(name, _COMPUTED)}"
                )
        names = [_short(name) for name in self.source]
        if len(set(names)) < len(names):
            raise UsageError(f"source: two are called {max(names, key=names.count)!r}, and their files would be one")


@verb(ProposalsOptions)
def proposals(options: ProposalsOptions) -> Outcome:
    """Compute region proposals of a data set, and tell how many of its objects they reach.

    What selective search finds is kept in the cache, picture by picture: training takes it from there.
    """
    from twostage.data.layout import Options
    from twostage.data.recognise import find_layout, opener

    layout = find_layout(options.data)
    open_split = opener(layout, Options(options.images, options.voc_offset, "default"))
    datasets = {split: open_split(split) for split in options.split or layout.splits}
    print(layout)
    told: dict[str, Any] = {}
    computed: dict[str, dict[str, tuple[ProposalSet, ProposalRecall]]] = {}
    for split, dataset in datasets.items():
        computed[split], told[split] = {}, {}
        for source in options.source:
            found, seconds = _timed(source, dataset, options)
            computed[split][source] = found, _recall(found, dataset, options.counts)
            told[split][source] = _summary(found, computed[split][source][1], seconds, dataset)
        print("\n".join(_lines(split, len(dataset), told[split])))
    result = {"path": options.data, "splits": told}
    if options.out:
        with whole_folder(options.out, "--out") as folder:
            _save(folder, datasets, computed, options.keep, to_json(result))
        print(f"\nSaved to {options.out}")
    return Outcome(result)


def _timed(source: str, dataset: "Dataset", options: ProposalsOptions) -> "tuple[ProposalSet, float | None]":
    """The proposals, and the seconds of a picture, None where all were kept from before."""
    from twostage.models.proposals.sources import Source, count_kept

    if source not in _COMPUTED:
        started = time.perf_counter()
        found = _propose(source, dataset, options)
        return found, (time.perf_counter() - started) / max(len(dataset), 1)
    settings = Source(source, seed=options.seed, width=options.width)  # type: ignore[arg-type]
    before, started = count_kept(settings), time.perf_counter()
    found = _propose(source, dataset, options)
    seconds, fresh = time.perf_counter() - started, count_kept(settings) - before
    return found, seconds / fresh if fresh > 0 else None


def _propose(source: str, dataset: "Dataset", options: ProposalsOptions) -> "ProposalSet":
    from twostage.data.proposals import is_proposals_file, read_proposals
    from twostage.progress import images_bar

    if source not in _COMPUTED and is_proposals_file(Path(source)):
        return read_proposals(Path(source), dataset)
    with images_bar(f"{Path(source).name}, {dataset.split}", quiet=options.quiet) as after_image:
        if source in _COMPUTED:
            from twostage.models.proposals.sources import Source, propose

            settings = Source(source, seed=options.seed, width=options.width)  # type: ignore[arg-type]
            return propose(settings, dataset, threads=options.workers or None, after_image=after_image)
        detector = load_detector(source, options)
        return detector.propose_dataset(dataset, batch=options.batch, workers=options.workers, after_image=after_image)


def _recall(found: "ProposalSet", dataset: "Dataset", counts: tuple[int, ...]) -> "ProposalRecall":
    from twostage.evaluation.recall import as_results, proposal_recall

    every_fifth_hundredth = [i / 20 for i in range(10, 21)]
    return proposal_recall(dataset, as_results(found), counts=counts, ious=every_fifth_hundredth)


def _summary(
    found: "ProposalSet", recall: "ProposalRecall", seconds: float | None, dataset: "Dataset"
) -> dict[str, Any]:
    images = max(len(dataset), 1)
    most = max([1, *(found.offsets[1:] - found.offsets[:-1]).tolist()])
    of_all = _recall(found, dataset, (most,))
    rows = {str(count): {iou: recall.at(count, iou=iou) for iou in recall.ious} for count in recall.counts}
    return {
        "proposals_an_image": len(found.boxes) / images,
        "seconds_an_image": seconds,
        "recall": rows | {"all": {iou: of_all.at(most, iou=iou) for iou in of_all.ious}},
    }


def _lines(split: str, images: int, rows: Mapping[str, Any]) -> Iterator[str]:
    counts = list(next(iter(rows.values()))["recall"])
    yield ""
    yield f"{split}: {images} images; recall of objects at IoU {', '.join(map(str, _SHOWN_IOUS))}"
    width = max(len(name) for name in rows)
    yield f"{'':{width}}  boxes   s/image" + "".join(f"{count:>20}" for count in counts)
    for name, row in rows.items():
        cells = (" ".join(f"{row['recall'][count][iou]:.3f}" for iou in _SHOWN_IOUS) for count in counts)
        seconds = "kept" if row["seconds_an_image"] is None else f"{row['seconds_an_image']:.3f}"
        line = f"{name:{width}} {row['proposals_an_image']:6.0f} {seconds:>9}"
        yield line + "".join(f"{cell:>20}" for cell in cells)


def _save(folder: Path, datasets: "Mapping[str, Dataset]", computed: Any, keep: int, numbers: str) -> None:
    from twostage.atomic import write_text
    from twostage.data.proposals import write_proposals
    from twostage.evaluation.plots import plot_recall, save_figure

    write_text(folder / "recall.json", numbers)
    for source in next(iter(computed.values())):
        of_splits = [(dataset, computed[split][source][0]) for split, dataset in datasets.items()]
        write_proposals(folder / f"{_short(source)}.safetensors", of_splits, keep)
    for split, found in computed.items():
        figure = plot_recall({_short(source): recall for source, (_, recall) in found.items()})
        save_figure(figure, folder / f"recall-{split}.png")


def _short(source: str) -> str:
    """A source's name, or the name of its file: that of the run, where it is the best weights of one."""
    path = Path(source)
    return path.parents[1].name if path.parent.name == "weights" and path.parents[1].name else path.stem
