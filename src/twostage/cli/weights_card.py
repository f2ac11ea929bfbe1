"""`twostage weights card`: the model card of a weights file."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from twostage.atomic import write_text
from twostage.cli.verb import Outcome, verb
from twostage.common_options import WEIGHTS
from twostage.folders import require_new_file
from twostage.options import Options, option


@dataclass(frozen=True)
class CardOptions(Options):
    weights: str = option(help=WEIGHTS)
    _: KW_ONLY
    out: Path | None = option(None, "New file for the card (Markdown) instead of standard output.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None:
            require_new_file(self.out, "--out")


@verb(CardOptions)
def card(options: CardOptions) -> Outcome:
    """Print the model card of weights: classes, metrics, origin, licences, certificate. Nothing is downloaded."""
    from twostage.weights.file import is_exported
    from twostage.weights.model_card import model_card
    from twostage.weights.named import find_weights

    path = find_weights(options.weights, offline=True)
    text = _card_of_export(path) if is_exported(path) else model_card(path)
    if options.out is None:
        print(text, end="")
    else:
        write_text(options.out, text)
        print(f"Written: {options.out}")
    return Outcome({"weights": options.weights, "card": text})


def _card_of_export(path: Path) -> str:
    from twostage.inference.exported import ExportedModel
    from twostage.weights.model_card import card_of

    model = ExportedModel.open(path)
    return card_of(path, model.card, model.origin(), path.parent / "certificate.json")
