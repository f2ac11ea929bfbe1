"""`twostage weights compare`: whether two sides detect the same, and what explains it where not."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.atomic import write_json
from twostage.cli.verb import Outcome, verb
from twostage.common_options import WEIGHTS
from twostage.errors import DataError, ThresholdError, UsageError
from twostage.folders import require_new_file
from twostage.options import Options, option

if TYPE_CHECKING:
    from twostage.evaluation.results import Results
    from twostage.models.config import DetectorConfig
    from twostage.parity.certificate import Certificate, Party
    from twostage.parity.compare import Diverges, Photos
    from twostage.weights.convert import Foreign

FEW = 4
PHOTOS = "Photos to compare on: files, folders or globs; the first --count of them."


@dataclass(frozen=True)
class CompareOptions(Options):
    weights: str = option(help=f"Detector that is compared. {WEIGHTS}")
    other: Path = option(
        help="The other side: weights of ours; a checkpoint of another project (as of weights convert); or a COCO "
        "results file (.json) of what your own port detects in the images."
    )
    _: KW_ONLY
    images: tuple[str, ...] = option(help=PHOTOS, group="Images")
    count: int | None = option(None, "Images, at most (default: 4; of a results file all).", group="Images", low=1)
    config: Path | None = option(None, "Configuration of a checkpoint: config.yaml, .py or .yml of its project.")
    key: str | None = option(None, "Entry of a checkpoint that holds the weights, such as model_ema.")
    out: Path | None = option(None, "New file for the certificate (JSON).", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise UsageError("images is empty: name some photos, as in `--images photos/`")
        foreign = self.other.suffix not in (".json", ".safetensors")
        if not foreign and (self.config is not None or self.key is not None):
            raise UsageError(f"config and key are of a checkpoint of another project, and {self.other} is none")
        if self.out is not None:
            require_new_file(self.out, "--out")


@verb(CompareOptions)
def compare(options: CompareOptions) -> Outcome:
    """Compare what two detectors detect, one to one, and name the stage and the convention where they differ.

    Exit code 5 where they do.
    """
    from twostage.detector import Detector
    from twostage.parity.certificate import Party
    from twostage.parity.compare import Subject, batches_of, certify
    from twostage.parity.divergence import first_divergence
    from twostage.parity.oracles import read_results
    from twostage.parity.variants import detect, variant_of
    from twostage.weights.convert import num_classes_of, read_foreign
    from twostage.weights.named import find_weights

    path = find_weights(options.weights)
    detector = Detector.load(path, device="cpu")
    of_file = options.other.suffix == ".json"
    photos = read_photos(options.images, options.count or (None if of_file else FEW))
    diverges: Diverges | None = None
    if of_file:
        oracle = Party(options.other, "results file")
        expected = {1: read_results(options.other, photos.files, detector.names)}
    elif options.other.suffix == ".safetensors":
        one = Detector.load(options.other, device="cpu")
        if one.names != detector.names:
            raise DataError(f"{options.other}: detects {', '.join(one.names)}; {path}: {', '.join(detector.names)}.")
        oracle, model = Party(options.other, "twostage"), variant_of(one).build()
        diverges = partial(first_divergence, model)
        expected = {batch: detect(model, photos.pixels, batch) for batch in batches_of(photos)}
    else:
        foreign = read_foreign(options.other, options.key, options.config)
        if (count := num_classes_of(foreign)) != len(detector.names):
            raise DataError(f"{options.other}: detects {count} classes; {path}: {len(detector.names)}.")
        oracle, expected, diverges = ask_reference(foreign, photos, detector.model.config)
    certificate = certify(Subject(path, variant_of(detector)), oracle, expected, photos, diverges=diverges)
    return Outcome(*say(certificate, options.out))


def ask_reference(
    foreign: "Foreign", photos: "Photos", config: "DetectorConfig"
) -> "tuple[Party, dict[int, Results], Diverges | None]":
    """What the reference of a checkpoint finds in photos, by their number at a time, and where models diverge from it.

    Sizes of images, thresholds and numbers are those of `config`.
    """
    from twostage.parity.certificate import Party
    from twostage.parity.compare import batches_of
    from twostage.parity.divergence import first_difference, stages_of
    from twostage.parity.oracles import detect_all, reference_of

    reference = reference_of(foreign.checkpoint, foreign.source, config, foreign.settings)
    found = {batch: detect_all(reference, photos.pixels, batch) for batch in batches_of(photos)}
    party, trace = Party(foreign.checkpoint.path, reference.name), reference.trace
    if trace is None:
        return party, found, None
    return party, found, lambda model, image: first_difference(trace(image), stages_of(model, image))


def say(certificate: "Certificate", out: Path | None) -> tuple[dict[str, Any], ThresholdError | None]:
    """Prints a certificate and writes it; its content, and the error with which it fails."""
    content = certificate.to_dict()
    for line in certificate.lines():
        print(line)
    if out is not None:
        write_json(out, content)
        print(f"Written: {out}")
    if certificate.passed:
        return content, None
    subject, oracle = certificate.subject.file, certificate.oracle.file
    return content, ThresholdError(f"{subject} and {oracle} do not detect the same.")


def read_photos(sources: tuple[str, ...], count: int | None) -> "Photos":
    """The first so many images of some sources, all without a number. Raises DataError for one that cannot be read."""
    from twostage.inference.sources import expand
    from twostage.parity.compare import Photos

    files, pixels = [], []
    for item in islice(expand(list(sources)), count):
        if item.image is None:
            raise item.error or DataError(f"{item.path}: contains no image.")
        file = Path(item.path or "")
        if not file.is_file():  # a frame of a video has no file of its own to be compared again
            raise DataError(f"{file}: is no image file. Name photos.")
        files.append(file)
        pixels.append(item.image)
    return Photos(files, pixels)
