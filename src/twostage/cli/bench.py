"""`twostage bench`: the speed of a detector on this machine, per stage and beside torchvision's."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, verb
from twostage.common_options import PRECISION, WEIGHTS, DetectorOptions, Precision
from twostage.errors import InterruptedRunError, UsageError
from twostage.folders import new_folder
from twostage.options import option
from twostage.progress import calls_bar

if TYPE_CHECKING:
    from twostage.detector import Detector


MODEL = "faster_rcnn_resnet50_fpn"

_OURS, _STAGES = "twostage", "stages"

_say = partial(print, flush=True)


@dataclass(frozen=True)
class BenchOptions(DetectorOptions):
    sources: tuple[Path, ...] = option((), "Image files (default: a generated scene of the model's size).")
    _: KW_ONLY
    model: str | None = option(
        None, "Model of the zoo, with random weights (default: faster_rcnn_resnet50_fpn).", group="Model"
    )
    weights: str | None = option(None, WEIGHTS, group="Model")
    batch: tuple[int, ...] = option(
        (1, 4), "Batch sizes, one or more; the CPU predicts large images one by one.", group="Run", low=1
    )
    precision: Precision = option("auto", PRECISION, group="Run")
    repeats: int = option(10, "Timed calls of each at most, after two warm-up calls.", group="Run", low=1)
    seconds: float = option(60.0, "Time limit of all calls; what it leaves out is named.", group="Run", above=0)
    peer: bool = option(True, "Time torchvision's detector too, if it has the model.", group="Run")
    out: Path | None = option(None, "New folder for the numbers and a plot of the stages.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.weights is not None:
            raise UsageError("both --model and --weights are given: choose one, a weights file names its model")


@verb(BenchOptions)
def bench(options: BenchOptions) -> Outcome:
    """Time a detector on this machine, per stage and beside torchvision's: predictions, stages, peak memory.

    All detectors are timed in one process, in turns, for --seconds at most; Ctrl-C prints what was measured. Times are
    also valid with random weights.
    """
    end = time.perf_counter() + options.seconds
    import torch

    from twostage.data.images import read_image
    from twostage.device import choose_device
    from twostage.environment import environment
    from twostage.inference.peer import PEERS
    from twostage.inference.precision import choose_precision
    from twostage.weights.file import is_exported

    folder = new_folder(options.out, "--out") if options.out else None
    device = choose_device(options.device)
    precision = choose_precision(device, options.precision)
    detector = None
    if options.weights is not None and is_exported(Path(options.weights)):  # has its own device and precision
        detector = _detector(options, precision)
        device, precision = detector.device, detector.precision
    machine = environment()
    about = {
        "precision": precision,
        "device": str(device),
        "processor": machine["cpu"]["name"],
        "instruction_set": machine["cpu"]["capability"],
        "threads": machine["threads"]["torch"],
    }
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    _say(
        f"{options.model or options.weights or MODEL}, {about['precision']} on {device}: {gpu}{about['processor']}, "
        f"{about['instruction_set']}, {threads}; {options.seconds:g} seconds"
    )
    detector = detector or _detector(options, precision)
    files = _files(options, detector)
    batches = [[files[i % len(files)] for i in range(size)] for size in dict.fromkeys(options.batch)]
    rows = [_Row(some, [read_image(file) for file in some]) for some in batches]
    precisions = ("fp32", detector.precision) if options.peer and detector.name in PEERS else ()
    peers = {f"torchvision {precision}": precision for precision in precisions}
    stopped = None
    try:
        _measure(options, detector, rows, peers, end)
    except KeyboardInterrupt:
        stopped = InterruptedRunError("stopped: the numbers are incomplete")
        for row in rows:
            if not row.begun:
                row.calls.clear()
    missing = _not_measured(rows, (*peers, *([] if detector.is_exported else [_STAGES])))
    if missing and not stopped:
        over = f"{options.seconds:g} seconds were over; use --seconds {2 * options.seconds:g}"
        _say(f"\nnot measured: {'; '.join(missing)}: {over}")
    forms = [] if detector.is_exported else _forms(detector)
    if forms:
        _say(f"forms: {', '.join(forms)}")
    result = {
        "model": detector.name,
        **about,
        "fields": {name: getattr(detector.config.image, name, None) for name in ("size", "max_size")},
        "forms": forms,
        "seconds": options.seconds,
        "complete": not (stopped or missing),
        "not_measured": missing,
        "batches": [row.summary() for row in rows if row.calls.get(_OURS)],
    }
    if folder:
        _save(folder, {**result, "environment": machine})
    return Outcome(result, stopped)


def _not_measured(rows: list["_Row"], cases: tuple[str, ...]) -> list[str]:
    """The batches, or the cases of them, that have no time."""
    missing = []
    for row in rows:
        lacking = [f", {name}" for name in cases if not row.calls.get(name)]
        lacking += [", peak memory"] if row.peak is None and rows[0].peak else []
        missing += [f"batch {len(row.files)}{case}" for case in (lacking if row.calls.get(_OURS) else [""])]
    return missing


def _save(folder: Path, result: dict[str, Any]) -> None:
    """The numbers, and a plot of the stages."""
    from twostage.atomic import write_json
    from twostage.evaluation.plots import plot_stages, save_figure

    write_json(folder / "bench.json", result)
    bars = {f"batch {row['batch']}": row["stages"] for row in result["batches"] if row["stages"]}
    if bars:
        save_figure(plot_stages(bars), folder / "stages.png")
    _say(f"Saved to {folder}")


def _detector(options: BenchOptions, precision: str) -> "Detector":
    if options.weights is not None:
        return load_detector(options.weights, options, precision=precision)
    from twostage.detector import Detector
    from twostage.models.zoo import require_known

    require_known(options.model_fields)
    names = [str(number) for number in range(80)]
    return Detector.build(
        options.model or MODEL,
        names,
        device=options.device,
        precision=precision,
        choose_forms=options.choose_forms,
        **options.given_fields,
    )


def _files(options: BenchOptions, detector: "Detector") -> list[Path | bytes]:
    """The given files, or one JPEG of the model's size with sides 4 : 3."""
    if options.sources:
        return list(options.sources)
    import io

    from PIL import Image

    from twostage.data.scenes import make_scene
    from twostage.models.image import ImageConfig

    rule = detector.config.image
    size, longest = (rule.size, rule.max_size) if isinstance(rule, ImageConfig) else (480, 640)
    shape = (min(longest, round(size * 4 / 3)), size)
    buffer = io.BytesIO()
    Image.fromarray(make_scene(0, 0, 0).image).resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return [buffer.getvalue()]


def _forms(detector: "Detector") -> list[str]:
    """The forms that the prepared model's layers have computed in, with the number of layers."""
    from twostage.models.fused import FusedConv, FusedLinear

    modules = detector.prepared.model.modules()
    layers = [
        m.conv if isinstance(m, FusedConv) else m.linear for m in modules if isinstance(m, FusedConv | FusedLinear)
    ]
    forms = Counter(
        form for layer in layers for form in getattr(getattr(layer, "forms", None), "used", [type(layer).__name__])
    )
    return [f"{count} {form}" for form, count in forms.most_common()]


@dataclass
class _Row:
    """One batch size, and the milliseconds of its calls: of ours, of torchvision's by precision, and by stage."""

    files: list[Path | bytes]
    images: list[Any]
    calls: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, list[float]] = field(default_factory=dict)
    peak: int | None = None
    begun: bool = False  # whether more than the call for the peak of memory was made

    def summary(self) -> dict[str, Any]:
        """The numbers so far, of one call of ours or more."""
        from twostage.inference.timing import times_of

        times = times_of({name: taken for name, taken in self.calls.items() if name != _STAGES})
        ours = times.pop(_OURS)
        return {
            "batch": len(self.files),
            "sizes": [list(image.shape[:2]) for image in self.images],
            "milliseconds": ours._asdict(),
            "images_per_second": 1e3 * len(self.files) / ours.median,
            "peers": {
                name: {**taken._asdict(), "times_slower": taken.median / ours.median} for name, taken in times.items()
            },
            "stages": {stage: taken._asdict() for stage, taken in times_of(self.stages).items()},
            "peak_memory_bytes": self.peak,
        }


def _measure(
    options: BenchOptions, detector: "Detector", rows: list[_Row], peers: Mapping[str, str], end: float
) -> None:
    """Fill the rows until `end` (of `time.perf_counter`): of each batch size the predictions, then their stages.

    `peers` are the precisions that torchvision's detector is timed in, by the name of the case.
    """
    from twostage.inference.peer import build_peer, predict_peer
    from twostage.inference.precision import slowdown
    from twostage.inference.predictor import predict_arrays
    from twostage.inference.timing import WARMUP, peak_memory, take_turns, time_stages

    def seconds(row: _Row, name: str) -> float:
        """What a case's first call should take, per image as long as with the first batch size, the peer as ours."""
        first = rows[0].calls
        return (first.get(name) or first[_OURS])[-1] / 1e3 * len(row.files) / len(rows[0].files)

    def may_start(row: _Row, name: str) -> bool:
        """Whether a case's first call should end in time, or a sixth of it later."""
        now = time.perf_counter()
        return now <= end and now + seconds(row, name) <= end + options.seconds / 6

    def turns(row: _Row, cases: Mapping[str, Callable[[], object]], share: float, calls: int) -> None:
        until = time.perf_counter() + share * max(0.0, end - time.perf_counter())
        with calls_bar(f"batch {len(row.files)}: {', '.join(cases)}") as show:
            for _ in take_turns(cases, row.calls, calls=calls, until=until):
                show(sum(len(row.calls.get(name, ())) for name in cases), calls * len(cases))

    model, most, peer = detector.runner, options.repeats + WARMUP, None
    ours = {len(row.files): partial(predict_arrays, model, row.images) for row in rows}
    with calls_bar("first calls: the forms of layers are tried") as show:
        for place, row in enumerate(rows):  # the peak of memory, before torchvision's detector takes some
            show(place, len(rows))
            if row is rows[0]:
                start = time.perf_counter()
                ours[len(row.files)]()  # trials take memory of their own
                row.calls[_OURS] = [1e3 * (time.perf_counter() - start)]
            if row is rows[0] or seconds(row, _OURS) <= options.seconds / 10:
                start = time.perf_counter()
                row.peak = peak_memory(detector.device, ours[len(row.files)])
                row.calls[_OURS] = [1e3 * (time.perf_counter() - start)]
    for place, row in enumerate(rows):
        if place and not may_start(row, _OURS):
            row.calls.clear()  # the one of the peak of memory was the first of its size
            continue
        _print_title(row)
        row.begun = True
        parts = 3 * (len(rows) - place)  # of the time left: two for these predictions, one for their stages
        cases: dict[str, Callable[[], object]] = {_OURS: ours[len(row.files)]}
        turns(row, cases, 1, calls=1)
        try:
            for name, precision in peers.items():
                if precision != "fp32":  # only if all calls fit: the comparison with fp32 comes first
                    last = [taken[-1] / 1e3 for taken in row.calls.values()]
                    turn = sum(last) + last[-1] * max(1.0, slowdown(detector.device, precision))
                    if most * turn > 2 / parts * (end - time.perf_counter()):
                        continue
                if may_start(row, name):
                    config = detector.config.image
                    peer = peer or build_peer(detector.name, len(detector.names), config, detector.device)
                    cases[name] = partial(predict_peer, peer, row.images, precision)
                    turns(row, cases, 1, calls=1)
            turns(row, cases, 2 / parts, most)
            if not detector.is_exported and may_start(row, _STAGES):
                stages = partial(time_stages, detector.prepared, row.files, row.stages)
                turns(row, {_STAGES: stages}, 1 / (parts - 2), most)
        finally:
            _print(row.summary())


def _print_title(row: _Row) -> None:
    sizes = list(dict.fromkeys(f"{image.shape[0]} x {image.shape[1]}" for image in row.images))
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    canvas = " on one canvas" if len(sizes) > 1 else ""
    _say(f"\nbatch {len(row.files)}, {shown} pixels{canvas}; milliseconds: median (minimum), number of calls")


def _print(row: dict[str, Any]) -> None:
    """The whole prediction, the peers, then each stage with its share."""
    memory = "" if row["peak_memory_bytes"] is None else f", {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    _say(f"  {'whole prediction':18} {_times(row['milliseconds'])}   {row['images_per_second']:.2f} images/s{memory}")
    for name, taken in row["peers"].items():
        _say(f"  {name:18} {_times(taken)}   {taken['times_slower']:.2f} times as long")
    total = sum(taken["median"] for taken in row["stages"].values())
    for stage, taken in row["stages"].items():
        share = taken["median"] / total
        _say(f"    {stage:16} {_times(taken)}   {share:4.0%} {'#' * round(30 * share)}")


def _times(taken: dict[str, float]) -> str:
    return f"{taken['median']:9.1f} ({taken['minimum']:.1f}) {taken['calls']:3}"
