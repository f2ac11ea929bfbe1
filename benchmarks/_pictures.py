"""Pictures for the benchmarks of speed: photos where $TWOSTAGE_DATA names some, generated scenes where not."""

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes


def photo_files(count: int) -> list[Path]:
    """So many files of photos."""
    return sorted(_folder().rglob("*.jpg"))[:count]


def small_files(count: int) -> list[Path]:
    """So many files of small pictures."""
    root = _root()
    return sorted((_scenes() if root is None else root / "blood-cells").rglob("*.jpg"))[:count]


def photo_data() -> Dataset:
    """Photos with boxes."""
    return open_dataset(_folder(), split="train" if _root() is None else "instances")


def small_data() -> Dataset:
    """Small pictures with boxes."""
    root = _root()
    return open_dataset(_scenes() if root is None else root / "blood-cells", split="train")


def photos(shape: tuple[int, int], count: int) -> list[Tensor]:
    """Photos [3, h, w] in 0..1, stretched to one shape."""
    images = [
        Image.open(path).convert("RGB").resize(shape[::-1], Image.Resampling.BILINEAR) for path in photo_files(count)
    ]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images]


def whence() -> str:
    """A line for the report."""
    return "Pictures: generated scenes." if _root() is None else "Pictures: photos of coco-photos, and blood-cells."


def _root() -> Path | None:
    return Path(os.environ["TWOSTAGE_DATA"]) / "data" if "TWOSTAGE_DATA" in os.environ else None


def _folder() -> Path:
    root = _root()
    return _scenes() if root is None else root / "coco-photos"


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # goes when the process ends


@cache
def _scenes() -> Path:
    return write_scenes(Path(_kept().name) / "scenes", train=64, val=1, seed=0)
