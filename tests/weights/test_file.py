import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from twostage import __version__
from twostage.detector import Detector
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.models.build import build
from twostage.models.component import to_dict
from twostage.models.config import TwoStageConfig
from twostage.models.configure import configure, names_of
from twostage.models.heads.bodies import FourConvConfig
from twostage.models.heads.box import BoxHeadConfig
from twostage.models.heads.mask import MaskConfig
from twostage.models.regions.pooling import RoIAlignConfig
from twostage.models.zoo import ZOO, named
from twostage.weights.file import FORMAT, KEY, Card, load_tensors, load_weights, save_weights

CARD = Card(
    "faster_rcnn_tiny_fpn",
    ("Blutkörperchen", "white cell"),
    configure(ZOO["faster_rcnn_tiny_fpn"], {"size": 600, "roi": "pool", "rpn_nms": 0.6}),
    metrics={"AP": 0.612, "AP50": 0.9},
    licence="CC0",
)


def state() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        "conv.bias": torch.randn(4, requires_grad=True),
        "half": torch.randn(2, 2).bfloat16(),
        "counter": torch.tensor(7),
        "turned": torch.randn(3, 5).T,
        "nothing": torch.empty(0, 4),
    }


def with_header(path: Path, **changes) -> Path:
    """A weights file whose entry is changed; a value of ... leaves a key out."""
    content = json.loads(CARD.to_json()) | changes
    content = {name: value for name, value in content.items() if value is not ...}
    save_file({"a": torch.zeros(1)}, path, metadata={KEY: json.dumps(content)})
    return path


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    """As those of a flattened checkpoint, and tied layers."""
    flat = torch.arange(12.0)
    shared = {"a": flat[:6].view(2, 3), "b": flat[6:], "all": flat, "again": flat}
    save_weights(tmp_path / "a.safetensors", shared, CARD)
    _, loaded = load_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shared.items())


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.safetensors"
    given = state()
    save_weights(path, given, CARD)
    card, loaded = load_weights(path)
    assert (card.model, card.names, card.licence) == (CARD.model, CARD.names, CARD.licence)
    assert card.metrics == CARD.metrics
    assert card.version == __version__
    assert card.config == CARD.config
    assert loaded.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
        assert not loaded[name].requires_grad


def test_any_reader_of_safetensors_can_read_it(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", state(), CARD)
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        header = json.loads(file.metadata()[KEY])
    assert header["format"] == FORMAT
    assert header["names"] == [*CARD.names]
    assert header["config"]["image"]["size"] == 600


def test_what_is_read_outlives_the_file(tmp_path: Path) -> None:
    """A run that overwrites last.safetensors must not change, or crash, who loaded it."""
    path = tmp_path / "a.safetensors"
    save_weights(path, {"a": torch.ones(1000)}, CARD)
    _, loaded = load_weights(path)
    save_weights(path, {"a": torch.zeros(10)}, CARD)
    path.unlink()
    assert loaded["a"].sum() == 1000


def test_no_half_written_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, {"a": torch.ones(3)}, CARD)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TwostageError, match=r"a\.safetensors.*No space left"):
        save_weights(path, {"a": torch.zeros(3)}, CARD)
    assert load_weights(path)[1]["a"].sum() == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# --- files that are not ours, or not whole


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.safetensors: no such weights file"):
        load_weights(tmp_path / "none.safetensors")


def test_a_run_folder_shows_the_file_inside(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a folder, not a weights file\.$"):
        load_weights(tmp_path)
    save_weights(tmp_path / "weights" / "best.safetensors", state(), CARD)
    with pytest.raises(UsageError, match=r"Did you mean .*weights.best\.safetensors\?"):
        load_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_weights(path, state(), CARD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut\.safetensors: not a readable safetensors file"):
        load_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"not a model at all", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 100, (2**40).to_bytes(8, "little") + b"{}"],
    ids=["text", "noise", "zip as .pth are", "header longer than the file"],
)
def test_other_files_are_refused_unread(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.pth: not a readable safetensors file.*Pickles .*weights convert"):
        load_weights(path)


def test_a_file_cut_short_is_called_that(tmp_path: Path) -> None:
    whole, short = tmp_path / "whole.safetensors", tmp_path / "short.safetensors"
    save_file({"a": torch.zeros(1000)}, whole)
    for size in (0, 4, 2000):
        short.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(DataError, match=r"short\.safetensors: .*cut short"):
            load_weights(short)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"a": Trap()}, tmp_path / "model.pth")
    with pytest.raises(DataError, match="Pickles "):
        load_weights(tmp_path / "model.pth")
    assert not (tmp_path / "sprung").exists()


def test_foreign_safetensors_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(DataError, match=r"not a twostage detector.*from_state_dict"):
            load_weights(path)
    metadata, tensors = load_tensors(path)
    assert metadata == {"format": "pt"}
    assert tensors["a"].tolist() == [1, 1]


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    path = with_header(tmp_path / "new.safetensors", format=FORMAT + 1, version="9.0", more="things")
    with pytest.raises(DataError, match=r"new\.safetensors: written by twostage 9\.0.*Update twostage"):
        load_weights(path)


def test_a_file_of_an_older_version_loads(tmp_path: Path) -> None:
    """Fields that did not exist yet take their defaults later; `licence` and `metrics` may be absent."""
    config = {**to_dict(CARD.config), "image": {"type": "ImageConfig", "size": 320, "max_size": 320}}
    path = with_header(tmp_path / "a.safetensors", version="0.0.1", config=config, licence=..., metrics=...)
    card, _ = load_weights(path)
    assert card.config == configure(CARD.config, {"size": 320, "max_size": 320})
    assert card.metrics == {}
    path = with_header(
        tmp_path / "b.safetensors", format=1, version="0.0.1", config=..., fields={"size": 64}, licence=..., metrics=...
    )
    card, _ = load_weights(path)
    assert card.config == configure(ZOO["faster_rcnn_tiny_fpn"], {"size": 64})
    assert card.metrics == {}


BEFORE = json.loads((Path(__file__).parents[1] / "before" / "weights.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", BEFORE["models"])
def test_every_header_of_format_1_is_the_configuration_of_its_model(tmp_path: Path, model: str) -> None:
    """It held the fields of all models; `recipe` and `proposals_seed`, which a model has no more, are left out."""
    fields = {**BEFORE["defaults"], **BEFORE["models"][model]["fields"]}
    path = with_header(tmp_path / "a.safetensors", format=1, model=model, config=..., fields=fields)
    # The model that was recorded had two classes of stuff.
    expected = configure(ZOO[model], {"semantic_classes": 2} if model.startswith("hybrid") else {})
    assert load_weights(path)[0].config == expected


@pytest.mark.parametrize("model", ZOO)
def test_every_configuration_is_read_as_it_was_written(tmp_path: Path, model: str) -> None:
    configs = [ZOO[model]]
    if "roi" in names_of(ZOO[model]):
        configs += [configure(ZOO[model], {"roi": "align"}), configure(ZOO[model], {"proposals": "file"})]
    for config in configs:
        save_weights(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, Card(model, ("a",), config))
        assert load_weights(tmp_path / "a.safetensors")[0].config == config


def test_a_configuration_outside_of_the_zoo_is_read_as_it_was_written(tmp_path: Path) -> None:
    head = BoxHeadConfig(FourConvConfig())
    config = replace(named("faster_rcnn_tiny_fpn"), mask=MaskConfig(), box_head=head)
    Detector(build(config, 1), "faster_rcnn_tiny_fpn", ["a"], device="cpu").save(tmp_path / "a.safetensors")
    assert Detector.load(tmp_path / "a.safetensors", device="cpu").model.config == config


def test_a_component_of_a_later_version_asks_for_an_update(tmp_path: Path) -> None:
    config = to_dict(named("faster_rcnn_tiny_fpn"))
    config["box_head"]["body"]["type"] = "LaterConfig"
    path = with_header(tmp_path / "later.safetensors", version="9.0", config=config)
    with pytest.raises(DataError, match=r"does not have the field 'box_head.body of the class LaterConfig'"):
        load_weights(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ...},
        {"names": "person"},
        {"names": [1, 2]},
        {"names": []},
        {"model": ...},
        {"model": 3},
        {"config": [1, 2]},
        {"config": ...},
        {"format": 1, "config": ..., "fields": [1, 2]},
        {"format": 1},
        {"format": ...},
        {"format": "one"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_header_that_describes_no_detector_is_named(tmp_path: Path, changes: dict) -> None:
    path = with_header(tmp_path / "odd.safetensors", **changes)
    with pytest.raises(DataError, match=r"odd\.safetensors: its header does not describe a detector"):
        load_weights(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": "many"}, "metrics 'many'"),
        ({"metrics": 1}, "metrics 1"),
        ({"metrics": {"AP": "high"}}, "metrics {'AP': 'high'}"),
        ({"metrics": {"AP": float("nan")}}, "metrics {'AP': nan}"),
        ({"licence": 3}, "licence and version [3, "),
    ],
    ids=str,
)
def test_what_a_header_says_wrongly_is_named(tmp_path: Path, changes: dict, named: str) -> None:
    """Found by the fuzzer. By its name: the suite's own checks of types would refuse such a card, a user has none."""
    path = with_header(tmp_path / "odd.safetensors", **changes)
    with pytest.raises(DataError, match=r"TypeError\(." + re.escape(named)):
        load_weights(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '"text"'])
def test_a_header_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={KEY: text})
    with pytest.raises(DataError, match=r"odd\.safetensors: its header does not describe a detector"):
        load_weights(tmp_path / "odd.safetensors")


def test_another_size_keeps_the_ratio_of_the_file() -> None:
    config = configure(named("faster_rcnn_tiny_fpn"), {"size": 320, "max_size": 480})
    image = configure(config, {"size": 640}).image
    assert (image.size, image.max_size) == (640, 960)
    assert configure(config, {"size": 640, "max_size": 700}).image.max_size == 700


BEFORE = json.loads((Path(__file__).parents[1] / "before" / "weights.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BEFORE["models"])
def test_a_file_of_format_1_has_the_configuration_of_its_flat_fields(name: str, tmp_path: Path) -> None:
    """It held the fields of all models: those of others are left out, also where defaults have changed since."""
    fields = {**BEFORE["defaults"], **BEFORE["models"][name]["fields"], "score_threshold": 0.125}
    fields |= (
        {} if name.startswith(("mask", "cascade_mask", "hybrid")) else {"mask_channels": 32, "semantic_lambda": 1.0}
    )
    path = with_header(tmp_path / "old.safetensors", format=1, model=name, fields=fields, config=...)
    card, _ = load_weights(path)
    changes = {"score_threshold": 0.125, **({"semantic_classes": 2} if name.startswith("hybrid") else {})}
    assert card.config == configure(named(name), changes)


@pytest.mark.parametrize("form", [1, 2])
def test_a_field_of_a_later_version_asks_for_an_update(tmp_path: Path, form: int) -> None:
    content = (
        {"fields": {"rpn_colour": 1}, "config": ...}
        if form == 1
        else {"config": {"rpn": {"type": "RPNConfig", "colour": 1}}}
    )
    path = with_header(tmp_path / "later.safetensors", format=form, version="9.0", **content)
    with pytest.raises(DataError, match=r"later\.safetensors: written by twostage 9\.0.*colour'\. Update twostage"):
        load_weights(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="not a regular file"):
        load_weights(tmp_path / "a.safetensors")


def test_format_1_keeps_the_values_of_the_pooling_that_was_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"roi": "align", "roi_aligned": True, "roi_sampling_ratio": 3, "roi_size": 5, "proposals_seed": 3}
    fields = {**BEFORE["defaults"], **BEFORE["models"]["faster_rcnn_tiny"]["fields"], **chosen}
    path = with_header(tmp_path / "a.safetensors", format=1, model="faster_rcnn_tiny", config=..., fields=fields)
    config = load_weights(path)[0].config
    assert isinstance(config, TwoStageConfig)
    assert config.roi == RoIAlignConfig(5, sampling_ratio=3, aligned=True)
    assert "proposals of the seed 3" in caplog.text
