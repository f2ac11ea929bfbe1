"""`twostage weights convert`: a pickled state dict as safetensors."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from twostage.cli.verb import Outcome, verb
from twostage.common_options import FieldsOptions
from twostage.errors import UsageError
from twostage.options import option


@dataclass(frozen=True)
class WeightsConvertOptions(FieldsOptions):
    file: Path = option(help="Pickled state dict (.pth, .pt): torchvision's Faster or Mask R-CNN, or a classifier.")
    _: KW_ONLY
    model: str | None = option(None, "Model of the detector; leave it out for a classification network.", group="Model")
    names: tuple[str, ...] = option(
        (), "Classes of the detector in order; `coco` stands for COCO's 80 classes.", group="Model"
    )
    out: Path = option(help="New weights file, NAME.safetensors.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) != (not self.names):
            raise UsageError("a detector needs both --model and --names, a classification network neither")
        if self.model is None and self.model_fields:
            raise UsageError(
                f"model.{next(iter(self.model_fields))} is given without --model: a classifier has no fields"
            )
        if self.out.exists():
            raise UsageError(f"--out {self.out}: exists already, and nothing is overwritten: name a new file")


@verb(WeightsConvertOptions)
def convert(options: WeightsConvertOptions) -> Outcome:
    """Convert a pickled state dict to safetensors. Its tensors are read, and none of its code is run."""
    from twostage.weights.pickled import coco_names, convert_backbone, convert_detector

    if options.model is None:
        convert_backbone(options.file, options.out)
    else:
        names = coco_names() if options.names == ("coco",) else options.names
        convert_detector(options.file, options.out, options.model, names, **options.model_fields)
    print(f"Written: {options.out}")
    return Outcome({"out": options.out, "model": options.model})
