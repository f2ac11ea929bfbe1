"""`twostage export`: a detector as a file for ONNX Runtime, OpenVINO or torch, with its proof."""

import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from twostage.atomic import write_json
from twostage.cli.classes import selected
from twostage.cli.loading import collecting_later
from twostage.cli.verb import Outcome, verb
from twostage.cli.weights_compare import FEW, PHOTOS, read_photos
from twostage.common_options import WEIGHTS, DetectionOptions, ModelOptions, OfflineOptions
from twostage.errors import ThresholdError, UsageError
from twostage.folders import whole_folder
from twostage.options import option

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.export.write import Form, Source, Written
    from twostage.parity.certificate import Quality
    from twostage.parity.compare import Photos
    from twostage.parity.divergence import Divergence

log = logging.getLogger("twostage.export")


@dataclass(frozen=True)
class ExportOptions(ModelOptions, OfflineOptions, DetectionOptions):
    _: KW_ONLY
    weights: str = option(help=WEIGHTS, group="Model")
    format: Literal["onnx", "openvino", "torch"] = option("onnx", "For ONNX Runtime, OpenVINO, or torch itself (.pt2).")
    precision: Literal["fp32", "fp16", "int8"] = option(
        "fp32", "Of the weights; fp16 halves the file, int8 also makes it faster and needs --calibrate."
    )
    pixels: bool = option(False, "ONNX: take uint8 pixels, with the resizing inside.")
    with_stages: bool = option(False, "Add what every stage computes to the outputs.")
    calibrate: Path | None = option(
        None, "Data set whose training images give int8 its ranges, and whose validation split gives AP.", group="int8"
    )
    calibration_images: int = option(100, "Images for the ranges, at most.", group="int8", low=1)
    max_loss: float = option(
        0.5, "Points of AP (of 100) that int8 may lose; parts that lose more stay in float32.", group="int8", low=0
    )
    out: Path | None = option(None, "New folder (default: NAME-FORMAT, after the weights file).", group="Output")
    images: tuple[str, ...] = option(
        (), f"{PHOTOS} Without: those of --calibrate, else generated scenes.", group="Images"
    )
    count: int = option(FEW, "Photos to compare on, at most.", group="Images", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.precision == "int8") != (self.calibrate is not None):
            raise UsageError("--precision int8 and --calibrate DATA go together: int8 needs images for its ranges")


@verb(ExportOptions)
def export(options: ExportOptions) -> Outcome:
    """Export a detector for another runtime, and prove that it detects the same.

    Thresholds are part of the file: --conf, --iou and --max-det set them, and a prediction can only raise --conf.
    Exit code 5 where the file and the detector differ.
    """
    with collecting_later():
        from twostage.export.proof import RULES, examples_of, prove, runtime_versions
        from twostage.export.write import Form, require_packages, write
        from twostage.inference.exported import ExportedModel
        from twostage.weights.file import sha256

    form = Form(options.format, options.precision, options.pixels, options.with_stages)
    require_packages(form)
    source = _source(options)
    data = _calibration(options, source) if options.calibrate else None
    photos = _photos(options, data)
    out = options.out or Path(f"{source.file.stem}-{options.format}")
    with whole_folder(out, "--out") as folder:
        log.info("Exporting %s of %s for %s ...", source.detector.name, source.file.name, options.format)
        written = write(source, folder, form, data and data.train, options.calibration_images)
        quality = _quality(written, source, data, options.max_loss) if data else None
        exported, rule = ExportedModel.open(written.path), RULES[options.precision]
        certificate = prove(source.file, source.detector.prepared, exported, examples_of(photos), rule)
        if quality is None and not certificate.passed and not form.pixels:
            certificate = certificate._replace(divergence=_divergence(source, form, photos))
        certificate = certificate._replace(quality=quality)
        print("\n".join(certificate.lines()), flush=True)
        content = certificate.to_dict()
        content["export"] = {key: value for key, value in exported.session.metadata.items() if key != "card"}
        content["versions"] |= runtime_versions()
        content["files"] = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        write_json(folder / "certificate.json", content)
    files = sorted(out.iterdir())
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"Written: {out} ({size:.1f} MB): {', '.join(file.name for file in files)}")
    result = {"out": out, "model": out / written.path.name, **form._asdict(), "certificate": content}
    if certificate.passed:
        return Outcome(result)
    lost = "loses more AP than it may" if quality else f"and {source.file} do not detect the same"
    return Outcome(result, ThresholdError(f"{out / written.path.name} {lost}."))


def _photos(options: ExportOptions, data: "_Data | None") -> "Photos | None":
    """Those given, else some of the data set's."""
    if options.images:
        return read_photos(options.images, options.count)
    if data is None:
        return None
    files = tuple(str(data.val.path(index)) for index in range(min(options.count, len(data.val))))
    return read_photos(files, options.count)


def _divergence(source: "Source", form: "Form", photos: "Photos | None") -> "Divergence | None":
    """The first stage that differs, of a file of the same form that shows its stages."""
    from tempfile import TemporaryDirectory

    from twostage.export.proof import examples_of, first_divergence
    from twostage.export.write import write
    from twostage.inference.exported import ExportedModel

    log.info("They differ: looking for the first stage that does ...")
    with TemporaryDirectory() as folder:
        seen = ExportedModel.open(write(source, Path(folder), form._replace(stages=True)).path)
        found = first_divergence(source.detector.prepared, seen, examples_of(photos)[0].image)
    if found is None:
        print("Every stage agrees on the first image alone.")
    return found


class _Data(NamedTuple):
    """The splits that give ranges and AP."""

    train: "Dataset"
    val: "Dataset"


def _calibration(options: ExportOptions, source: "Source") -> _Data:
    """The splits of the data set; the detector is scored on the second. Raises UsageError as `selected`."""
    from twostage.data.recognise import default_splits, evaluation_split, find_layout, open_dataset

    assert options.calibrate is not None
    layout = find_layout(options.calibrate)
    val_name = evaluation_split(layout)
    names = default_splits(layout)[0] or val_name, val_name
    print(f"{layout}; ranges from {names[0]!r}, AP on {names[1]!r}")
    train, val = (open_dataset(options.calibrate, split=name) for name in names)
    return _Data(train, selected(val, source.detector.names))


def _quality(written: "Written", source: "Source", data: _Data, allowed: float) -> "Quality":
    """Write the int8 file, and what it costs."""
    from twostage.detector import Detector
    from twostage.export.accuracy import score_of, with_float_parts

    assert written.quantise is not None
    quantise = written.quantise

    def build(float_layers: Sequence[str]) -> Detector:
        """The detector with these layers in float32."""
        quantise(float_layers)
        return Detector.load(written.path)

    before = score_of(source.detector, data.val)
    return with_float_parts(build, written.layers, data.val, before, allowed)


def _source(options: ExportOptions) -> "Source":
    """The detector of the weights, with the options' fields and thresholds."""
    from twostage.detector import Detector
    from twostage.export.write import Source
    from twostage.models.zoo import require_known
    from twostage.weights.file import load_weights
    from twostage.weights.named import find_weights

    require_known(options.model_fields)
    file = find_weights(options.weights, offline=options.offline)
    thresholds = {"score_threshold": options.conf, "nms": options.iou, "max_det": options.max_det}
    given: dict[str, Any] = {name: value for name, value in thresholds.items() if value is not None}
    detector = Detector.load(file, device="cpu", offline=options.offline, **options.given_fields, **given)
    return Source(detector, load_weights(file)[0], file)
