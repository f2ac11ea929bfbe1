"""Each recipe starts and steps, on a generated data set of VOC's shape and classes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from twostage.cli import main
from twostage.models.backbones import vgg
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF
from twostage.training.folder import RunFolder

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SMALL = {"head_channels": 16, "rpn_keep_train": 30, "rpn_keep_test": 20, "region_batch": 8}
SMALL_RPN = {"rpn_channels": 16, "rpn_top_train": 60, "rpn_top_test": 30, "rpn_min_size": 4}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images a split; all twenty classes in each."""
    root = tmp_path_factory.mktemp("voc") / "VOC2007"
    lists = root / "ImageSets" / "Main"
    for folder in (root / "JPEGImages", root / "Annotations", lists):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, split in enumerate(("trainval", "trainval", "test", "test")):
        stem = f"{number:06d}"
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg")
        objects = ""
        for k, name in enumerate(VOC):
            x, y = 1 + 15 * (k % 5), 1 + 14 * (k // 5)
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 13}</xmax><ymax>{y + 12}</ymax>"
            objects += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
        text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        with (lists / f"{split}.txt").open("a") as file:
            file.write(f"{stem}\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """VGG16's blocks with few channels, and no plots of finished runs: both take longer than what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "WIDTHS", ((8, 8), (8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 512)))
        patch.setattr(RunFolder, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random convolutions in the place of ImageNet's."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, net in (("vgg16", VGG16()), ("zf", ZF())):
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("vgg16", "zf")}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_starts_and_steps(
    recipe: Path,
    voc: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path.parent / "home"))
    text = recipe.read_text()
    given = weights["vgg16" if "vgg16" in text else "zf"]
    call = ["train", str(voc), "--config", str(recipe), "--weights", str(given), "--epochs", "1", "--size", "64"]
    call += ["--max-size", "90", "--workers", "0", "--out", str(tmp_path / "run"), "--quiet", "--json"]
    has_rpn = yaml.safe_load(text)["model"].startswith("faster_")
    small = {**SMALL, **SMALL_RPN} if has_rpn else SMALL
    call += [f"--set=model.{name}={value}" for name, value in small.items()]
    if has_rpn and "anchor_sizes" not in text:
        call.append("--set=model.anchor_sizes=[[16, 32, 64]]")
    assert main(call) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] >= 1
    assert Path(result["weights"]).exists()


def test_every_recipe_is_in_the_table() -> None:
    table = (Path(__file__).parents[1] / "recipes" / "README.md").read_text()
    missing = [path.stem for path in RECIPES if f"`{path.stem}`" not in table]
    assert not missing
