"""The model card of a weights file: what it detects, how well, where it comes from, under which licences.

After Mitchell et al. 2019, "Model Cards for Model Reporting": the sections that a file can fill by itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage.errors import DataError
from twostage.folders import CERTIFICATE
from twostage.models.image import ImageConfig
from twostage.shell import command
from twostage.weights.file import Card, load_weights, sha256

CODE = "MIT"  # of twostage
COMPARE = "twostage weights compare FILE OTHER --images photos/"


def certificate_of(weights: Path) -> Path:
    """Where the certificate of a weights file is, if it has one."""
    return weights.with_suffix(CERTIFICATE)


def model_card(path: Path) -> str:
    """The card of weights as Markdown. Raises as `load_weights`, and DataError for a certificate that is none."""
    card, tensors = load_weights(path)
    values = sum(tensor.numel() for tensor in tensors.values())
    return card_of(path, card, f"{len(tensors)} tensors of {values:,} values", certificate_of(path))


def card_of(path: Path, card: Card, content: str, certificate: Path) -> str:
    """The card of a file with this content as Markdown. Raises DataError for a certificate that is none."""
    digest, size = sha256(path), f"{path.stat().st_size / 1e6:.1f} MB, {content}"
    sections = {
        f"# {path.name}": [f"A {card.model} of twostage {card.version}. {size}. SHA-256 {digest}."],
        "## Classes": [f"{len(card.names)}: {', '.join(card.names)}."],
        "## Images": [_images(card)],
        "## Metrics": _rows(("metric", "value"), {name: _number(value) for name, value in card.metrics.items()}),
        "## Origin": _rows(("", ""), card.origin),
        "## Licences": [f"- code: {CODE}", f"- weights: {card.licence}", f"- data: {_data(card)}"],
        "## Certificate": list(_certificate(certificate, digest)),
    }
    return (
        "\n\n".join("\n".join([heading, "", *(lines or ["Not recorded."])]) for heading, lines in sections.items())
        + "\n"
    )


def _number(metric: float) -> str:
    return f"{metric:.3f}" if metric >= 0 else "-"  # -1 stands for undefined


def _images(card: Card) -> str:
    image, post = card.config.image, card.config.postprocess
    size = (
        f"shortest side {image.size}, longest at most {image.max_size}"
        if isinstance(image, ImageConfig)
        else "as they are"
    )
    return f"RGB, {size}. Detections from a score of {post.score_threshold:g} on, at most {post.max_det} in an image."


def _data(card: Card) -> str:
    data = card.origin.get("data")
    return f"those of {data}; twostage does not record them" if data else "not recorded"


def _rows(head: Sequence[str], rows: Mapping[str, Any]) -> list[str]:
    """A table; nothing of nothing."""
    lines = [head, ["---"] * len(head), *([str(name), str(value)] for name, value in rows.items())]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else []


def _certificate(path: Path, digest: str) -> Iterator[str]:
    """What a certificate says, and whether it is of this file."""
    if not path.exists():
        yield f"None beside the file. One is made by `{COMPARE} {command('--out', path)}`."
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        subject, oracle, batches = (content[name] for name in ("subject", "oracle", "batches"))
        if subject["sha256"] != digest:
            yield f"{path.name} is of another file, of the SHA-256 {subject['sha256']}: compare this one anew."
            return
        quality = content.get("quality")
        if quality is not None:
            verdict = f"{'no more' if content['passed'] else '**more**'} AP lost than may be"
            yield f"{path.name}: {verdict} against {oracle['computed_by']} with {oracle['file']}."
            yield ""
            yield f"- AP on {quality['data']}: {quality['before']:.4f} before, {quality['after']:.4f} after"
        else:
            passed = "the same detections" if content["passed"] else "**not** the same detections"
            yield f"{path.name}: {passed} as {oracle['computed_by']} finds with {oracle['file']}."
            yield ""
        for each in batches:
            line = f"- {each['images']} images, {each['batch']} at a time: {each['matched']} of {each['expected']}"
            if each["pixels"] is None:
                yield f"{line} detections"
                continue
            yield (
                f"{line} detections; boxes differ by {each['pixels']['largest']:.1e} px at most, scores by "
                f"{each['scores']['largest']:.1e}"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no certificate ({error!r}). Remove it, or make it anew.") from None
