"""`twostage bench`: the speed of a detector on this machine, per stage and beside torchvision's."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, verb
from twostage.common_options import WEIGHTS, DetectorOptions
from twostage.errors import UsageError
from twostage.folders import new_folder
from twostage.options import option

if TYPE_CHECKING:
    from twostage.detector import Detector


MODEL = "faster_rcnn_resnet50_fpn"


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
    repeats: int = option(10, "Timed calls of each, after two warm-up calls.", group="Run", low=1)
    peer: bool = option(True, "Time torchvision's detector too, if it has the model.", group="Run")
    out: Path | None = option(None, "New folder for the numbers and a plot of the stages.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.weights is not None:
            raise UsageError("both --model and --weights are given: choose one, a weights file names its model")


@verb(BenchOptions)
def bench(options: BenchOptions) -> Outcome:
    """Time a detector on this machine, per stage and beside torchvision's: predictions, stages, peak memory.

    All detectors are timed in one process, in turns. Times are also valid with random weights.
    """
    from twostage.environment import environment

    folder = new_folder(options.out, "--out") if options.out else None
    detector = _detector(options)
    files = _files(options, detector)
    print(f"{detector.name}, {detector.precision} on {detector.device}, {_threads(detector)}")
    batches = {size: [files[i % len(files)] for i in range(size)] for size in options.batch}
    peaks = {size: _peak(detector, some) for size, some in batches.items()}  # before torchvision's detector is built
    rows = []
    for size, some in batches.items():
        rows.append({"batch": size, **_of_batch(detector, some, options), "peak_memory_bytes": peaks[size]})
        _print(rows[-1])
    result = {
        "model": detector.name,
        "precision": detector.precision,
        "device": str(detector.device),
        "fields": {name: getattr(detector.model.config.image, name, None) for name in ("size", "max_size")},
        "batches": rows,
    }
    if folder:
        from twostage.atomic import write_json
        from twostage.evaluation.plots import plot_stages, save_figure

        write_json(folder / "bench.json", {**result, "environment": environment()})
        save_figure(plot_stages({f"batch {row['batch']}": row["stages"] for row in rows}), folder / "stages.png")
        print(f"Saved to {folder}")
    return Outcome(result)


def _detector(options: BenchOptions) -> "Detector":
    if options.weights is not None:
        return load_detector(options.weights, options)
    from twostage.detector import Detector
    from twostage.models.zoo import require_known

    require_known(options.model_fields)
    names = [str(number) for number in range(80)]
    return Detector.build(
        options.model or MODEL, names, device=options.device, precision=options.precision, **options.given_fields
    )


def _files(options: BenchOptions, detector: "Detector") -> list[Path | bytes]:
    """The given files, or one JPEG of the model's size with sides 4 : 3."""
    if options.sources:
        return list(options.sources)
    import io

    from PIL import Image

    from twostage.data.scenes import make_scene
    from twostage.models.image import ImageConfig

    rule = detector.model.config.image
    size, longest = (rule.size, rule.max_size) if isinstance(rule, ImageConfig) else (480, 640)
    shape = (min(longest, round(size * 4 / 3)), size)
    buffer = io.BytesIO()
    Image.fromarray(make_scene(0, 0, 0).image).resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return [buffer.getvalue()]


def _peak(detector: "Detector", files: list[Path | bytes]) -> int | None:
    from twostage.data.images import read_image
    from twostage.inference.predictor import predict_arrays
    from twostage.inference.timing import peak_memory

    images = [read_image(file) for file in files]
    return peak_memory(detector.device, lambda: predict_arrays(detector.prepared, images))


def _of_batch(detector: "Detector", files: list[Path | bytes], options: BenchOptions) -> dict[str, Any]:
    from twostage.data.images import read_image
    from twostage.inference.peer import PEERS, build_peer, predict_peer
    from twostage.inference.predictor import predict_arrays
    from twostage.inference.timing import interleaved, stage_times

    images = [read_image(file) for file in files]
    cases = {"twostage": lambda: predict_arrays(detector.prepared, images)}
    if options.peer and detector.name in PEERS:
        peer = build_peer(detector.name, len(detector.names), detector.model.config.image, detector.device)
        for precision in dict.fromkeys(("fp32", detector.precision)):
            cases[f"torchvision {precision}"] = lambda p=precision: predict_peer(peer, images, p)  # type: ignore[misc]
    times = interleaved(cases, repeats=options.repeats)
    ours, *others = times
    return {
        "sizes": [list(image.shape[:2]) for image in images],
        "milliseconds": times[ours]._asdict(),
        "images_per_second": 1e3 * len(images) / times[ours].median,
        "peers": {
            name: {**times[name]._asdict(), "times_slower": times[name].median / times[ours].median} for name in others
        },
        "stages": {
            stage: taken._asdict()
            for stage, taken in stage_times(detector.prepared, files, repeats=options.repeats).items()
        },
    }


def _print(row: dict[str, Any]) -> None:
    """The whole prediction, the peers, then each stage with its share."""
    whole = row["milliseconds"]
    sizes = list(dict.fromkeys(f"{height} x {width}" for height, width in row["sizes"]))
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    canvas = " on one canvas" if len(sizes) > 1 else ""
    print(f"\nbatch {row['batch']}, {shown} pixels{canvas}; median (minimum) milliseconds")
    memory = "" if row["peak_memory_bytes"] is None else f", {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    print(f"  {'whole prediction':18} {_times(whole)}   {row['images_per_second']:.2f} images/s{memory}")
    for name, taken in row["peers"].items():
        print(f"  {name:18} {_times(taken)}   {taken['times_slower']:.2f} times as long")
    total = sum(taken["median"] for taken in row["stages"].values())
    for stage, taken in row["stages"].items():
        share = taken["median"] / total
        print(f"    {stage:16} {_times(taken)}   {share:4.0%} {'#' * round(30 * share)}")


def _times(taken: dict[str, float]) -> str:
    return f"{taken['median']:9.1f} ({taken['minimum']:.1f})"


def _threads(detector: "Detector") -> str:
    import torch

    if detector.device.type == "cuda":
        return torch.cuda.get_device_name(detector.device)
    return f"{torch.get_num_threads()} threads"
