"""The configuration file of `eval --tune`."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from twostage.atomic import write_text

if TYPE_CHECKING:
    from twostage.inspection.tune import Tuned

_MAX_DET = "postprocess.max_det"  # an option of every verb that predicts, which would replace the model's value


def write_tuned(path: Path, tuned: "Tuned", data: str, weights: str) -> None:
    """Write the values that pay as a configuration file (`--config`), with what they gained."""
    before, after = tuned.singles.now, tuned.steps[-1] if tuned.steps else tuned.singles.now
    masks = ""
    if before.segm is not None and after.segm is not None:
        masks = f" of boxes, {before.segm.AP:.4f} to {after.segm.AP:.4f} of masks"
    comment = [
        f"Settings of {weights} that pay on {data}: AP {before.AP:.4f} to {after.AP:.4f}{masks},",
        f"{after.milliseconds - before.milliseconds:+.1f} ms an image. Chosen there: confirm on other images.",
        "twostage eval DATA --weights W --config THIS; predict and export take it too.",
    ]
    fields = dict(tuned.fields)
    options = {"max_det": fields.pop(_MAX_DET)} if _MAX_DET in fields else {}
    content = options | ({"model_fields": fields} if fields else {})
    lines = [f"# {line}" for line in comment] + [yaml.safe_dump(content, sort_keys=False) if content else ""]
    write_text(path, "\n".join(lines))
