"""`twostage data proposals`: region proposals of a data set, and their recall."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions, DetectorOptions, RunOptions, WorkersOptions
from twostage.errors import MissingError, UsageError, nearest
from twostage.folders import whole_folder
from twostage.options import option
from twostage.weights.published import PUBLISHED

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.data.proposals import ProposalSet
    from twostage.evaluation.recall import ProposalRecall

_COUNTS = (50, 100, 300, 500, 1000, 2000)
_SHOWN_IOUS = (0.5, 0.7, 0.9)
_COMPUTED = ("selective_search", "selective_search_quality", "sliding_window")


@dataclass(frozen=True, kw_only=True)
class ProposalsOptions(DataOptions, DetectorOptions, RunOptions, WorkersOptions):
    source: tuple[str, ...] = option(
        ("selective_search",),
        "One or more of selective_search, selective_search_quality, sliding_window, weights of a detector, and files "
        "of proposals.",
    )
    split: tuple[str, ...] = option((), "Splits (default: all).", group="Data")
    keep: int = option(2000, "Boxes per image in the files.", group="Proposals", low=1)
    counts: tuple[int, ...] = option(
        _COUNTS, "Numbers of proposals at which recall is computed.", group="Proposals", low=1
    )
    width: int = option(500, "Selective search resizes wider images to this width.", group="Proposals", low=16)
    batch: int = option(1, "Images per forward pass of a detector.", group="Run", low=1)
    workers: int | None = option(
        None, "Threads of selective search, or processes that read images for a detector.", group="Run", low=0
    )
    out: Path | None = option(
        None, "New folder for one file per source, as read by --proposals, and the plot of recall.", group="Output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source or not self.counts:
            raise UsageError(f"{'counts' if self.source else 'source'} is empty: name at least one")
        for name in self.source:
            if name not in (*_COMPUTED, *PUBLISHED) and not Path(name).suffix and not Path(name).exists():
                raise UsageError(f"source: {name!r} is neither a source nor a file. {nearest(name, _COMPUTED)}")
        self.require_used([name for name in self.source if name not in _COMPUTED])
        names = [_short(name) for name in self.source]
        if len(set(names)) < len(names):
            raise UsageError(f"source: two are named {max(names, key=names.count)!r}, and would write the same file")

    def require_used(self, detectors: Sequence[str]) -> None:
        """Raises UsageError for options that are of no use to any source, of which these are detectors."""
        searched = any(name.startswith("selective_search") for name in self.source)
        detected = bool(detectors)
        needed = {
            "width": searched,
            "seed": searched,
            "workers": searched or detected,
            "keep": self.out is not None,
            **dict.fromkeys(("batch", "device", "precision", "choose_forms", "model_fields"), detected),
            **dict.fromkeys(("size", "max_size"), detected),
        }
        for name, used in needed.items():
            default = {} if name == "model_fields" else getattr(ProposalsOptions, name)
            if not used and getattr(self, name) != default:
                why = (
                    "nothing is written without --out"
                    if name == "keep"
                    else f"{', '.join(self.source)} has no use for it"
                )
                raise UsageError(f"{name} is {getattr(self, name)!r}, and {why}: leave it out")


@verb(ProposalsOptions)
def proposals(options: ProposalsOptions) -> Outcome:
    """Compute region proposals of a data set, and their recall of its objects.

    Proposals of selective search are cached per image; training reads them from there.
    """
    from twostage.data.layout import Options
    from twostage.data.proposals import is_proposals_file
    from twostage.data.recognise import find_layout, opener

    files = [name for name in options.source if name not in (*_COMPUTED, *PUBLISHED)]
    for name in files:  # before hours of work for the other sources
        if not Path(name).exists():
            raise MissingError(f"source: {name}: no such file of proposals or weights. Check the path.")
    stored = [name for name in files if is_proposals_file(Path(name))]
    options.require_used([name for name in options.source if name not in (*_COMPUTED, *stored)])
    layout = find_layout(options.data)
    open_split = opener(layout, Options(options.images, options.voc_offset, "default", boxes=options.boxes))
    datasets = {split: open_split(split) for split in options.split or layout.splits}
    print(layout)
    summaries: dict[str, Any] = {}
    computed: dict[str, dict[str, tuple[ProposalSet, ProposalRecall]]] = {}
    result = {"path": options.data, "splits": summaries}
    # Made before the work, which may take hours.
    with whole_folder(options.out, "--out") if options.out else nullcontext() as folder:
        for split, dataset in datasets.items():
            computed[split], summaries[split] = {}, {}
            for source in options.source:
                proposals, seconds = _timed(source, dataset, options)
                recall = _recall(proposals, dataset, options.counts)
                computed[split][source] = proposals, recall
                summaries[split][source] = _summary(proposals, recall, seconds, dataset)
            print("\n".join(_lines(split, len(dataset), summaries[split])))
        if folder is not None:
            _save(folder, datasets, computed, options.keep, result)
    if options.out:
        print(f"\nSaved to {options.out}")
    return Outcome(result)


def _timed(source: str, dataset: "Dataset", options: ProposalsOptions) -> "tuple[ProposalSet, float | None]":
    """The proposals, and the seconds per image; None if all came from the cache."""
    from twostage.models.proposals.sources import Source, count_kept, propose
    from twostage.progress import images_bar

    if source not in _COMPUTED:
        started = time.perf_counter()
        proposals = _given(source, dataset, options)
        return proposals, (time.perf_counter() - started) / max(len(dataset), 1)
    settings = Source(source, seed=options.seed, width=options.width)  # type: ignore[arg-type]
    before, started = count_kept(settings), time.perf_counter()
    with images_bar(f"{source}, {dataset.split}", quiet=options.quiet) as after_image:
        proposals = propose(settings, dataset, threads=options.workers or None, after_image=after_image)
    seconds, fresh = time.perf_counter() - started, count_kept(settings) - before
    return proposals, seconds / fresh if fresh > 0 else None


def _given(source: str, dataset: "Dataset", options: ProposalsOptions) -> "ProposalSet":
    """The proposals of a file, or of the detector of a weights file."""
    from twostage.data.proposals import is_proposals_file, read_proposals
    from twostage.progress import images_bar

    if is_proposals_file(Path(source)):
        return read_proposals(Path(source), dataset)
    with images_bar(f"{Path(source).name}, {dataset.split}", quiet=options.quiet) as after_image:
        detector = load_detector(source, options)
        return detector.propose_dataset(dataset, batch=options.batch, workers=options.workers, after_image=after_image)


def _recall(proposals: "ProposalSet", dataset: "Dataset", counts: tuple[int, ...]) -> "ProposalRecall":
    from twostage.evaluation.recall import as_results, proposal_recall

    ious = [i / 20 for i in range(10, 21)]
    return proposal_recall(dataset, as_results(proposals), counts=counts, ious=ious)


def _summary(
    proposals: "ProposalSet", recall: "ProposalRecall", seconds: float | None, dataset: "Dataset"
) -> dict[str, Any]:
    images = max(len(dataset), 1)
    most = max([1, *(proposals.offsets[1:] - proposals.offsets[:-1]).tolist()])
    of_all = _recall(proposals, dataset, (most,))
    rows = {str(count): {iou: recall.at(count, iou=iou) for iou in recall.ious} for count in recall.counts}
    return {
        "proposals_an_image": len(proposals.boxes) / images,
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
        seconds = "cached" if row["seconds_an_image"] is None else f"{row['seconds_an_image']:.3f}"
        line = f"{name:{width}} {row['proposals_an_image']:6.0f} {seconds:>9}"
        yield line + "".join(f"{cell:>20}" for cell in cells)


def _save(folder: Path, datasets: "Mapping[str, Dataset]", computed: Any, keep: int, result: Any) -> None:
    from twostage.atomic import write_json
    from twostage.data.proposals import write_proposals
    from twostage.evaluation.plots import plot_recall, save_figure

    write_json(folder / "recall.json", result)
    for source in next(iter(computed.values())):
        of_splits = [(dataset, computed[split][source][0]) for split, dataset in datasets.items()]
        write_proposals(folder / f"{_short(source)}.safetensors", of_splits, keep)
    for split, of_sources in computed.items():
        figure = plot_recall({_short(source): recall for source, (_, recall) in of_sources.items()})
        save_figure(figure, folder / f"recall-{split}.png")


def _short(source: str) -> str:
    """The name of a source or of its file; for the weights of a run, the name of the run folder."""
    path = Path(source)
    return path.parents[1].name if path.parent.name == "weights" and path.parents[1].name else path.stem
