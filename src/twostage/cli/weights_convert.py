"""`twostage weights convert`: weights of another project, or a classification network's, as safetensors."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.verb import Outcome, verb
from twostage.cli.weights_compare import ask_reference, read_photos, say
from twostage.common_options import FieldsOptions
from twostage.errors import DataError, UsageError
from twostage.folders import CERTIFICATE, require_new_file
from twostage.options import option

if TYPE_CHECKING:
    from twostage.parity.certificate import Certificate
    from twostage.parity.compare import Photos
    from twostage.weights.convert import Assumption, Foreign
    from twostage.weights.file import Card


# How names begin that no classification network has.
_OF_DETECTORS = (
    *("rpn_head.", "bbox_head.", "roi_head.", "mask_head.", "neck.", "panoptic", "sem_seg_head.", "transformer."),
    *("head.classification_head.", "head.regression_head.", "proposal_generator.", "roi_heads.", "rpn."),
)


@dataclass(frozen=True)
class WeightsConvertOptions(FieldsOptions):
    file: Path = option(help="Weights of another project (.pth, .pt, .pkl, .caffemodel).")
    _: KW_ONLY
    source: Literal[
        "auto",
        "torchvision",
        "detectron2",
        "mmdetection",
        "detectron",
        "py-faster-rcnn",
        "simple-faster-rcnn",
        "classifier",
    ] = option("auto", "Where they come from; auto: by their names.", flag="--from")
    config: Path | None = option(
        None,
        "Configuration of these weights: config.yaml of detectron2 and Detectron, .py of mmdetection, .yml of "
        "py-faster-rcnn and simple-faster-rcnn. Without: published defaults.",
    )
    key: str | None = option(None, "Entry of the file that holds the weights, such as model_ema.")
    model: str | None = option(None, "Model of a torchvision detector (default: by its weights).", group="Model")
    names: tuple[str, ...] = option(
        (), "Classes of the detector in order; `coco` stands for COCO's 80 classes.", group="Model"
    )
    licence: str | None = option(
        None, "Licence of these weights, for their model card (default: unknown).", group="Model"
    )
    images: tuple[str, ...] = option(
        (), "Photos on which the result is compared with a reference of the project; the first --count.", group="Images"
    )
    count: int = option(4, "Photos, at most.", group="Images", low=1)
    out: Path = option(help="New weights file, NAME.safetensors.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "classifier":
            idle = {"names": self.names, "config": self.config, "model": self.model, "images": self.images}
            idle |= self.model_fields | {"licence": self.licence}
            for name, value in idle.items():
                if value:
                    raise UsageError(f"{name} is given with --from classifier: such a network has none, leave it out")
        if self.model is not None and self.key is not None:
            raise UsageError("key is given with --model: leave --model out, the weights show it")
        if self.model is not None and self.images:
            raise UsageError("images is given with --model: leave --model out, the weights show it")
        if self.model is not None and not self.names:
            raise UsageError("--model needs --names: the classes in order, or `coco`")
        if self.model is not None and (self.source not in ("auto", "torchvision") or self.config is not None):
            raise UsageError("--model is for torchvision's weights, which show less: leave it out")
        certificate = self.out.parent / f"{self.out.stem}{CERTIFICATE}"  # `with_suffix` refuses the folder `.`
        for path in (self.out, *([certificate] if self.images else [])):
            require_new_file(path, "--out")


@verb(WeightsConvertOptions)
def convert(options: WeightsConvertOptions) -> Outcome:
    """Convert weights of another project to a file of ours. Tensors are read, and no code is run."""
    from twostage.weights.convert import SOURCES, convert, foreign_of, recognise
    from twostage.weights.pickled import coco_names, convert_backbone, convert_detector, read_checkpoint

    names = coco_names() if options.names == ("coco",) else options.names
    if options.model is not None:
        licence = options.licence or "unknown"
        convert_detector(options.file, options.out, options.model, names, licence=licence, **options.model_fields)
        print(f"Written: {options.out}")
        return Outcome({"out": options.out, "model": options.model, "source": "torchvision"})
    checkpoint = read_checkpoint(options.file, options.key)
    source = "classifier" if options.source == "classifier" else recognise(checkpoint.state, options.source)
    wanted = options.names or options.config is not None or options.model_fields or options.images
    if source is None and (wanted or any(name.startswith(_OF_DETECTORS) for name in checkpoint.state)):
        names_of = list(checkpoint.state)
        raise DataError(
            f"{options.file}: no detector of {', '.join(SOURCES)} that twostage has, by the names of its weights: "
            f"{', '.join(names_of[:3])} ... {', '.join(names_of[-3:])}. If it is one, say whose with --from, or give "
            "torchvision's --model."
        )
    if source is None or source == "classifier":
        convert_backbone(options.file, options.out)
        print(f"Written: {options.out}, a classification network's, to begin a training from")
        return Outcome({"out": options.out, "model": None, "source": "classifier"})
    for other in checkpoint.others:
        print(f"The file also has {other}, another copy of the weights: --key {other} converts that one.")
    foreign = foreign_of(checkpoint, source, options.config)
    photos = read_photos(options.images, options.count) if options.images else None
    licence = options.licence or "unknown"
    done = convert(foreign, options.out, names=names, licence=licence, fields=options.model_fields)
    _print_assumptions(done.assumptions, source)
    print(f"    classes: {done.names_from}")
    print(f"Written: {options.out}, {done.card.model} of {source}, {len(done.card.names)} classes")
    content, failure = None, None
    if photos:
        certificate = _prove(options.out, photos, foreign, done.card)
        content, failure = say(certificate, options.out.with_suffix(CERTIFICATE))
    return Outcome(
        {
            "out": options.out,
            "model": done.card.model,
            "source": source,
            "names": done.card.names,
            "assumptions": [each._asdict() for each in done.assumptions],
            "certificate": content,
        },
        failure,
    )


def _prove(out: Path, photos: "Photos", foreign: "Foreign", card: "Card") -> "Certificate":
    """The certificate of the file that was written."""
    from twostage.parity.compare import Subject, certify
    from twostage.parity.variants import Variant
    from twostage.weights.file import load_tensors

    oracle, expected, diverges = ask_reference(foreign, photos, card.config)
    variant = Variant(card.config, load_tensors(out)[1], len(card.names))
    return certify(Subject(out, variant), oracle, expected, photos, diverges=diverges)


def _print_assumptions(assumptions: "list[Assumption]", source: str) -> None:
    width = max(len(each.path) for each in assumptions)
    print(f"What the weights do not show (* as given, the others as {source} publishes them):")
    for each in assumptions:
        print(f"  {'*' if each.given else ' '} {each.path:{width}}  {_short(each.value)}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"({', '.join(map(_short, value))})" if isinstance(value, tuple) else str(value)
