"""`twostage bench`: how fast a detector is on this machine, stage by stage, and beside torchvision's."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, to_json, verb
from twostage.errors import UsageError
from twostage.folders import new_folder
from twostage.options import option, validate

if TYPE_CHECKING:
    from twostage.detector import Detector


MODEL = "faster_rcnn_resnet50_fpn"


@dataclass(frozen=True)
class BenchOptions:
    """What to time, on which pictures, how often."""

    sources: tuple[Path, ...] = option((), "Pictures to predict (default: a generated scene of the model's size).")
    _: KW_ONLY
    model: str | None = option(
        None, "Model of the zoo with random weights (default: faster_rcnn_resnet50_fpn).", group="Model"
    )
    weights: str | None = option(None, "Instead: a weights file, or a name of `twostage weights list`.", group="Model")
    model_fields: dict[str, Any] = option({}, "Fields of the model, as --set model.FIELD=VALUE.", group="Model")
    size: int | None = option(None, "Shortest side of the image (default: as trained).", group="Images", low=1)
    max_size: int | None = option(None, "Longest side of the image (default: as trained).", group="Images", low=1)
    batch: tuple[int, ...] = option(
        (1, 4), "Images at once, one or more numbers; large ones go one by one on a processor.", group="Run", low=1
    )
    repeats: int = option(10, "Timed calls of each, behind two that are not.", group="Run", low=1)
    peer: bool = option(True, "Time torchvision's detector too, where it has the model.", group="Run")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the forward pass.", group="Run")
    offline: bool = option(False, "Never reach for the network.", group="Run")
    out: Path | None = option(None, "New folder for the numbers and a picture of the stages.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if self.model is not None and self.weights is not None:
            raise UsageError("both --model and --weights are given: weights name their own model")


@verb(BenchOptions)
def bench(options: BenchOptions) -> Outcome:
    """Time a detector on this machine: whole predictions, every stage, peak memory, beside torchvision's.

    All take turns in one process. With random weights the numbers of time hold, those of detections say nothing.
    """
    from twostage.environment import environment

    folder = new_folder(options.out, "--out") if options.out else None
    detector = _detector(options)
    pictures = _pictures(options, detector)
    print(f"{detector.name}, {detector.precision} on {detector.device}, {_threads(detector)}")
    batches = {size: [pictures[i % len(pictures)] for i in range(size)] for size in options.batch}
    peaks = {size: _peak(detector, some) for size, some in batches.items()}  # before torchvision's detector is here
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
        from twostage.atomic import write_text
        from twostage.evaluation.plots import plot_stages, save_figure

        write_text(folder / "bench.json", to_json({**result, "environment": environment()}))
        save_figure(plot_stages({f"batch {row['batch']}": row["stages"] for row in rows}), folder / "stages.png")
        print(f"Saved to {folder}")
    return Outcome(result)


def _detector(options: BenchOptions) -> "Detector":
    if options.weights is not None:
        return load_detector(options.weights, options)
    from twostage.detector import Detector
    from twostage.models.zoo import require_known

    require_known(options.model_fields)
    given = {"size": options.size, "max_size": options.max_size}
    fields = {**options.model_fields, **{name: value for name, value in given.items() if value is not None}}
    names = [str(number) for number in range(80)]
    return Detector.build(options.model or MODEL, names, device=options.device, precision=options.precision, **fields)


def _pictures(options: BenchOptions, detector: "Detector") -> list[Path | bytes]:
    """The files asked for, or one of the model's size in the shape of a photo."""
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


def _peak(detector: "Detector", pictures: list[Path | bytes]) -> int | None:
    from twostage.data.images import read_image
    from twostage.inference.timing import peak_memory, predict_arrays

    images = [read_image(picture) for picture in pictures]
    return peak_memory(detector.device, lambda: predict_arrays(detector.prepared, images))


def _of_batch(detector: "Detector", pictures: list[Path | bytes], options: BenchOptions) -> dict[str, Any]:
    from twostage.data.images import read_image
    from twostage.inference.peer import PEERS, build_peer, predict_peer
    from twostage.inference.timing import interleaved, predict_arrays, stage_times

    images = [read_image(picture) for picture in pictures]
    cases = {"twostage": lambda: predict_arrays(detector.prepared, images)}
    if options.peer and detector.name in PEERS:
        theirs = build_peer(detector.name, len(detector.names), detector.model.config.image, detector.device)
        for precision in dict.fromkeys(("fp32", detector.precision)):
            cases[f"torchvision {precision}"] = lambda p=precision: predict_peer(theirs, images, p)  # type: ignore[misc]
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
            for stage, taken in stage_times(detector.prepared, pictures, repeats=options.repeats).items()
        },
    }


def _print(row: dict[str, Any]) -> None:
    """The whole, then the peers, then each stage with its share."""
    whole = row["milliseconds"]
    sizes = list(dict.fromkeys(f"{height} x {width}" for height, width in row["sizes"]))
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    canvas = " on one canvas" if len(sizes) > 1 else ""
    print(f"\nbatch {row['batch']}, {shown} pixels{canvas}; median (minimum) milliseconds")
    memory = "" if row["peak_memory_bytes"] is None else f", {row['peak_memory_bytes'] / 2**20:.0f} MiB"
    print(f"  {'whole prediction':18} {_times(whole)}   {row['images_per_second']:.2f} images a second{memory}")
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
