"""Every family from training to results, and data that lack what they learn."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twostage.cli import main
from twostage.data.proposals import ProposalSet
from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.errors import DataError, UsageError
from twostage.ops import masks as rle_masks
from twostage.training import TrainOptions, train

pytestmark = pytest.mark.slow

KINDS = ["mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "hybrid_task_cascade"]


def of(options: TrainOptions, kind: str, **changes: object) -> TrainOptions:
    fields = {**options.model_fields, "head_channels": 32}
    if "mask" in kind or kind.startswith("hybrid"):
        fields |= {"mask_channels": 16, "mask_convs": 2}
    if kind.startswith("hybrid"):
        fields["semantic_convs"] = 1
    if kind == "retinanet":  # those of two stages are none of its fields
        fields = {}
    return replace(options, model=f"{kind}_tiny_fpn", **{"model_fields": fields, **changes})


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", [*KINDS, "retinanet"])
def test_trains_evaluates_and_predicts(
    options: TrainOptions, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(of(options, kind))
    masks = kind not in ("cascade_rcnn", "retinanet")
    assert ("segm_AP" in result["metrics"]) == masks
    with (Path(result["out"]) / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    expected = {"train_loss_semantic", "val_loss_semantic"} if kind == "hybrid_task_cascade" else set()
    assert {c for c in columns if "semantic" in c} == expected
    assert ("train_loss_mask_3" in columns) == (kind in ("cascade_mask_rcnn", "hybrid_task_cascade"))
    assert main(["eval", str(options.data), "--weights", result["weights"], "--workers", "0", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert ("segm" in scored) == masks
    assert scored["metrics"]["AP"] == pytest.approx(result["metrics"]["AP"])
    picture = str(next((options.data / "val").iterdir()))
    assert main(["predict", picture, "--weights", result["weights"], "--conf", "0.0", "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert image["detections"]
    for found in image["detections"]:
        assert ("mask" in found) == masks
        if masks:
            (mask,) = rle_masks.decode([found["mask"]])
            assert mask.shape == (image["height"], image["width"])


def test_the_file_knows_how_many_classes_of_stuff_there_are(options: TrainOptions) -> None:
    detector = Detector.load(train(of(options, "hybrid_task_cascade", epochs=1))["weights"])
    assert detector.model.config.semantic.classes == 6
    found = detector.predict(next((options.data / "val").iterdir()), conf=0.0)
    assert found.masks is not None
    assert len(found.masks) == len(found)
    assert rle_masks.decode(found.masks).shape[1:] == found.size


def changed(scenes: Path, folder: Path, change) -> Path:
    """A copy of the scenes with other annotations."""
    shutil.copytree(scenes, folder)
    for path in (folder / "annotations").iterdir():
        document = json.loads(path.read_text())
        for annotation in document["annotations"]:
            change(annotation)
        path.write_text(json.dumps(document))
    return folder


def test_without_masks_a_mask_model_says_so_before_it_writes(options: TrainOptions, tmp_path: Path) -> None:
    data = changed(options.data, tmp_path / "boxes", lambda a: a.pop("segmentation"))
    with pytest.raises(DataError, match=r"'train' has no masks, and this model learns them\. Add masks"):
        train(of(options, "mask_rcnn", data=data))
    assert not options.out.exists()
    train(replace(options, data=data, epochs=1))  # boxes alone can be learned


def test_an_object_without_a_mask_is_named(options: TrainOptions, tmp_path: Path) -> None:
    data = changed(options.data, tmp_path / "some", lambda a: a.update(segmentation=[]) if a["id"] == 3 else None)
    with pytest.raises(DataError, match=r"1 of \d+ objects have no mask \(.*object with id 3 the.*--on-error skip"):
        train(of(options, "mask_rcnn", data=data))
    dataset = open_dataset(data, split="train")
    others = tuple(n for k, n in enumerate(dataset.names) if k != dataset.labels[list(dataset.annotation_ids).index(3)])
    chosen = of(options, "mask_rcnn", data=data, names=others, val_split="none", epochs=1, out=tmp_path / "others")
    train(chosen)  # of these classes all have masks
    assert open_dataset(data, split="train").masks is not None
    empty = {"size": [192, 192], "counts": [192 * 192]}
    other = changed(options.data, tmp_path / "e", lambda a: a.update(segmentation=empty) if a["id"] == 3 else None)
    with pytest.raises(DataError, match=r"1 of \d+ masks have no pixel in their image \(.*id 3\)"):
        train(of(options, "mask_rcnn", data=other))
    result = train(of(options, "mask_rcnn", data=data, on_error="skip", epochs=1))
    assert "segm_AP" in result["metrics"]


def test_without_stuff_the_branch_is_left_out_and_a_half_of_it_is_an_error(
    options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(options.data, data)
    shutil.rmtree(data / "stuff" / "val")
    with pytest.raises(DataError, match=r"'val' has no maps of stuff.*semantic_classes=0"):
        train(of(options, "hybrid_task_cascade", data=data))
    assert not options.out.exists()
    shutil.rmtree(data / "stuff")
    with caplog.at_level("INFO", "twostage.training"):
        result = train(of(options, "hybrid_task_cascade", data=data, out=tmp_path / "without", epochs=1))
    assert "trained without its semantic branch" in caplog.text
    assert Detector.load(result["weights"]).model.head.semantic is None


def test_weights_of_classes_are_as_many_as_the_data_has(options: TrainOptions) -> None:
    fields = {**options.model_fields, "class_weights": [1, 2, 1, 1, 0.5]}
    assert train(replace(options, model_fields=fields, epochs=1))["steps"] == 2
    fields["class_weights"] = [1, 2]
    with pytest.raises(UsageError, match="2 numbers: give one for each of 5 classes"):
        train(replace(options, model_fields=fields, out=options.out.with_name("other")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn": ("backbone", "boxes")}, "name it too"),
        ({"scheme": "alternating"}, "choose a faster_rcnn"),
        ({"proposals": Path("some.safetensors")}, "one stage, which takes none"),
        ({"model_fields": {"proposals": "selective_search"}}, "no field 'proposals'"),
    ],
)
def test_one_stage_takes_nothing_from_elsewhere(options: TrainOptions, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(of(options, "retinanet", **changes))


def test_one_stage_proposes_nothing_to_others(options: TrainOptions) -> None:
    weights = train(of(options, "retinanet", epochs=1, learn=("backbone", "rpn")))["weights"]
    val = open_dataset(options.data, split="val")
    detector = Detector.load(weights)
    with pytest.raises(UsageError, match="has one stage and no RPN"):
        detector.propose_dataset(val)
    proposals = ProposalSet.of(
        ((np.zeros((1, 4), np.float32), np.zeros(1, np.float32)) for _ in range(len(val))), "file"
    )
    with pytest.raises(UsageError, match="takes no proposals from elsewhere"):
        detector.detect_dataset(val, proposals=proposals)


def test_maps_of_stuff_concern_nobody_else(options: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(options.data, data)
    next((data / "stuff" / "train").iterdir()).unlink()
    assert train(replace(options, data=data, epochs=1))["steps"] == 2
    fields = {**options.model_fields, "semantic_classes": 0}
    without = of(options, "hybrid_task_cascade", data=data, model_fields=fields, out=tmp_path / "o", epochs=1)
    assert train(without)["steps"] == 2
    with pytest.raises(DataError, match="1 of 8 images have no stuff map"):
        train(of(options, "hybrid_task_cascade", data=data, out=tmp_path / "p"))
    few = {**options.model_fields, "semantic_classes": 3}
    with pytest.raises(DataError, match="have 6 classes, the model 3"):
        train(of(options, "hybrid_task_cascade", model_fields=few, out=tmp_path / "q"))
    with pytest.raises(UsageError, match="needs a map of stride 8"):
        train(of(options, "hybrid_task_cascade", model_fields={**few, "pyramid": "single"}, out=tmp_path / "r"))


def test_masks_are_not_asked_of_data_where_the_head_rests(options: TrainOptions, tmp_path: Path) -> None:
    data = changed(options.data, tmp_path / "boxes", lambda a: a.pop("segmentation"))
    assert train(of(options, "mask_rcnn", data=data, learn=("backbone", "rpn"), epochs=1))["steps"] == 2


def test_a_threshold_of_masks_can_be_asked_for(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    masks, boxes = (
        train(of(options, k, epochs=1, out=options.out / k))["weights"] for k in ("mask_rcnn", "cascade_rcnn")
    )
    call = ["eval", str(options.data), "--workers", "0", "--fail-under", "segm_AP=0.99", "--weights"]
    assert main([*call, masks]) == 5
    assert "segm_AP is 0.0" in capsys.readouterr().err
    assert main([*call, boxes]) == 2
    assert "no masks were scored" in capsys.readouterr().err
