"""The configuration file of a run, and what a resumed run may change."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import pytest

from twostage.errors import DataError, MissingError, UsageError
from twostage.options import option, validate
from twostage.run_config import CONFIG, read_config, resumed, to_yaml


@dataclass(frozen=True)
class Options:
    """Options of each kind that a run has."""

    data: Path | None = option(None, "Data.")
    _: KW_ONLY
    weights: str | None = option(None, "Weights.")
    epochs: int | None = option(None, "Epochs.", low=1)
    scale: tuple[float, float] | None = option(None, "Scale.")
    model_fields: dict[str, object] = option({}, "Fields.")
    device: str = option("auto", "Device.")
    out: Path | None = option(None, "Folder.")

    def __post_init__(self) -> None:
        validate(self)


RUN = Options(Path("data"), weights="w.safetensors", scale=(0.5, 2.0), model_fields={"rpn_nms": 0.6}, out=Path("run"))


def test_a_written_configuration_reads_back_with_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(to_yaml(RUN))
    found = read_config(Options, tmp_path)
    assert found == Options(
        Path("data").absolute(),
        weights=str(Path("w.safetensors").absolute()),
        scale=(0.5, 2.0),
        model_fields={"rpn_nms": 0.6},
    )
    assert "epochs" not in to_yaml(RUN)


def test_a_missing_configuration(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no run to resume: it holds no config\.yaml"):
        read_config(Options, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 0", "config.yaml: epochs is 0, and must be at least 1"),
        ("epochz: 3", "config.yaml: not the configuration of a run .*epochz"),
        ("[1, 2]", "config.yaml: not the configuration of a run"),
        ("", "config.yaml: not the configuration of a run"),
        ("epochs: [", "config.yaml: not the configuration of a run"),
    ],
)
def test_a_faulty_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(DataError, match=message):
        read_config(Options, tmp_path)


def test_a_resumed_run_takes_what_is_free_and_refuses_what_would_change_it() -> None:
    saved = Options(Path("data"), epochs=3)
    assert resumed(Options(device="cpu", epochs=3), saved, ("device",), "begin anew") == Options(
        Path("data"), epochs=3, device="cpu"
    )
    with pytest.raises(UsageError, match=r"epochs: .* Leave it out, or begin anew\."):
        resumed(Options(epochs=4), saved, ("device",), "begin anew")
