"""The model card has what the file holds, and says what it does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twostage.errors import DataError, MissingError
from twostage.models.zoo import ZOO
from twostage.weights.file import Card, save_weights, sha256
from twostage.weights.model_card import certificate_of, model_card

CARD = Card("faster_rcnn_tiny_fpn", ("cat", "dog"), ZOO["faster_rcnn_tiny_fpn"], {"AP": 0.3214, "APl": -1.0}, "CC0")


def written(path: Path, card: Card) -> Path:
    save_weights(path / "a.safetensors", {"a": torch.zeros(3, 5)}, card)
    return path / "a.safetensors"


def test_what_the_file_holds(tmp_path: Path) -> None:
    path = written(tmp_path, replace(CARD, origin={"made by": "twostage train", "data": "pets", "seed": 3}))
    text = model_card(path)
    assert f"1 tensors of 15 values. SHA-256 {sha256(path)}" in text
    assert "2: cat, dog." in text
    assert "| AP | 0.321 |" in text
    assert "| APl | - |" in text  # undefined
    assert "| data | pets |" in text
    assert "- weights: CC0" in text
    assert "those of pets" in text
    assert "None beside the file" in text


def test_what_it_does_not_hold(tmp_path: Path) -> None:
    text = model_card(written(tmp_path, replace(CARD, metrics={})))
    assert text.count("Not recorded.") == 2  # metrics and origin
    with pytest.raises(MissingError):
        model_card(tmp_path / "nowhere.safetensors")


def test_the_certificate_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, CARD)
    batch = {"images": 4, "batch": 1, "matched": 9, "expected": 9}
    batch |= {"pixels": {"largest": 1e-4}, "scores": {"largest": 2e-6}}  # type: ignore[dict-item]
    oracle = {"file": "b.pkl", "computed_by": "a reference"}
    content = {"passed": True, "subject": {"sha256": sha256(path)}, "oracle": oracle, "batches": [batch]}
    certificate_of(path).write_text(json.dumps(content))
    text = model_card(path)
    assert "a.certificate.json: the same detections as a reference finds with b.pkl." in text
    assert "4 images, 1 at a time: 9 of 9 detections; boxes differ by 1.0e-04 px at most, scores by 2.0e-06" in text
    certificate_of(path).write_text(json.dumps(content | {"subject": {"sha256": "0"}}))
    assert "is of another file" in model_card(path)
    certificate_of(path).write_text("{}")
    with pytest.raises(DataError, match=r"a\.certificate\.json: is no certificate"):
        model_card(path)
