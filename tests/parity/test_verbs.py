"""`weights convert --images` and `weights compare`: certificates, and the other sides they take."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe import caffemodel
from foreign_states import py_faster_rcnn_shapes, simple_faster_rcnn_shapes
from PIL import Image
from reference_detectors import balancing, make_state
from torch import Tensor

from twostage import Detector
from twostage.cli import main
from twostage.errors import DataError
from twostage.models.configure import configure
from twostage.parity.oracles import COCO_IDS, detect_all, read_results, reference_of
from twostage.parity.reference import py_faster_rcnn, simple_faster_rcnn
from twostage.parity.reference.torchvision import build
from twostage.parity.variants import Pixels
from twostage.weights.importers.detectron2 import from_detectron2
from twostage.weights.importers.torchvision import import_torchvision
from twostage.weights.pickled import Checkpoint, coco_names

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main([str(word) for word in words]), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor], photos: list[Pixels]) -> Path:
    """A file as detectron2's model zoo has it, its configuration, and photos."""
    root = tmp_path_factory.mktemp("foreign")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (root / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "?"}, protocol=4))
    (root / "config.yaml").write_text(
        "INPUT: {MIN_SIZE_TEST: 128}\nMODEL: {RPN: {POST_NMS_TOPK_TEST: 100}, ROI_HEADS: {NUM_CLASSES: 5}}\n"
    )
    (root / "photos").mkdir()
    for k, photo in enumerate(photos):
        Image.fromarray(photo).save(root / "photos" / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    out = folder / "mine.safetensors"
    words = ("weights", "convert", folder / "model.pkl", "--config", folder / "config.yaml", "--names", *NAMES)
    code = main([str(word) for word in (*words, "--images", folder / "photos", "--out", out)])
    assert code == 0
    return out


def test_a_conversion_ends_in_a_certificate(folder: Path, converted: Path) -> None:
    certificate = json.loads(converted.with_suffix(".certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["oracle"]["computed_by"] == "a reference of detectron2's rules"
    assert [image["file"] for image in certificate["images"]] == ["0.png", "1.png", "2.png"]
    assert len({image["sha256"] for image in certificate["images"]}) == 3
    assert [each["batch"] for each in certificate["batches"]] == [1, 3]
    for each in certificate["batches"]:
        assert each["matched"] == each["expected"] == each["found"] > 100
        assert each["pixels"]["largest"] <= 1e-2
        assert each["scores"]["largest"] <= 1e-4
    assert certificate["first_divergence"] is None
    assert len(certificate["subject"]["sha256"]) == 64


def test_two_files_of_ours(run: Callable, folder: Path, converted: Path) -> None:
    other = folder / "other.safetensors"
    detector = Detector.load(converted, device="cpu", roi_aligned=False)
    detector.save(other)
    code, out, err = run(
        *("weights", "compare", other, converted, "--images", folder / "photos" / "0.png"),
        *("--out", folder / "certificate.json"),
    )
    assert code == 5
    assert "First different: the heads (head.regions)" in out
    assert "Explained by roi.aligned: True there, False here" in out
    assert "With that nothing differs." in out
    assert "do not detect the same" in err
    certificate = json.loads((folder / "certificate.json").read_text())
    assert not certificate["passed"]
    assert certificate["explained_wholly"]
    code, _, err = run("weights", "compare", converted, converted, "--images", folder / "photos" / "0.png")
    assert (code, "is the same file as" in err) == (2, True)
    again = folder / "again.safetensors"
    Detector.load(converted, device="cpu").save(again)  # another header
    assert run("weights", "compare", again, converted, "--images", folder / "photos")[0] == 0


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("resize_by", "torch", "image"),
        ("stride_in_1x1", False, "maps.level0"),
        ("anchor_offset", 7.5, "proposals.boxes"),
    ],
)
def test_where_a_file_parts_from_the_reference(
    run: Callable, folder: Path, converted: Path, field: str, value: object, place: str
) -> None:
    other = folder / f"{field}.safetensors"
    Detector.load(converted, device="cpu", **{field: value}).save(other)  # type: ignore[arg-type]
    words = ("weights", "compare", other, folder / "model.pkl", "--config", folder / "config.yaml")
    code, out, _ = run(*words, "--images", folder / "photos" / "1.png")
    assert code == 5
    assert f"({place})" in out
    assert "With that nothing differs." in out


def test_what_ones_own_port_detects(run: Callable, folder: Path, converted: Path) -> None:
    """A results file: the port has background in the first row instead of the last."""
    state = dict(Detector.load(converted, device="cpu").model.state_dict())
    port = Detector.load(converted, device="cpu")
    port.model.load_state_dict({name: x.roll(-1, 0) if ".classes." in name else x for name, x in state.items()})
    found = port.predict(folder / "photos" / "1.png", conf=0.05)
    rows = [
        {"image_id": 1, "category_id": int(k) + 1, "bbox": [*box[:2], *(box[2:] - box[:2])], "score": float(score)}
        for box, score, k in zip(found.boxes.astype(float), found.scores, found.class_ids, strict=True)
    ]
    path = folder / "port.json"
    path.write_text(json.dumps(rows, default=float))
    code, out, _ = run("weights", "compare", converted, path, "--images", folder / "photos" / "1.png")
    assert code == 5
    assert "Explained by background first:" in out
    assert "With that nothing differs." in out


def test_the_first_weights_of_torchvision_have_no_eps(photos: list[Pixels]) -> None:
    """As `Detector.from_state_dict` takes them: 91 outputs, eps 0."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    torch.manual_seed(0)
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    found = import_torchvision(state)
    assert found.config.backbone.norm.eps == 0  # type: ignore[union-attr]
    model = build(state, found.config, "a")
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.0}


def test_a_detector_that_no_reference_covers(state: dict[str, Tensor]) -> None:
    config = configure(from_detectron2(state).config, {"soft_nms": "linear"})
    with pytest.raises(DataError, match=r"does not cover this detector \(another suppression"):
        reference_of(Checkpoint(Path("a.pkl"), state), "detectron2", config)


def test_bad_input(run: Callable, folder: Path, converted: Path, tmp_path: Path) -> None:
    photos = folder / "photos" / "0.png"
    (tmp_path / "none.json").write_text("[]")
    code, _, err = run("weights", "compare", converted, tmp_path / "none.json", "--images", photos)
    assert (code, "nothing is detected in these images, which proves nothing" in err) == (3, True)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    code, _, err = run("weights", "compare", converted, tmp_path / "a.pth", "--images", photos)
    assert (code, "no detector of torchvision, detectron2, mmdetection" in err) == (3, True)
    code, _, err = run("weights", "compare", converted, folder / "nowhere.pth", "--images", photos)
    assert code == 4
    named = Detector.build("faster_rcnn_tiny_fpn", ["x"], device="cpu")
    named.save(tmp_path / "x.safetensors")
    code, _, err = run("weights", "compare", converted, tmp_path / "x.safetensors", "--images", photos)
    assert (code, "detects x; " in err) == (3, True)


def test_a_checkpoint_of_other_classes_is_none_to_compare_with(
    vgg_files: dict[str, list[Path]], folder: Path, tmp_path: Path, run: Callable[..., tuple]
) -> None:
    Detector.build("faster_rcnn_tiny_fpn", ["x", "y"], device="cpu").save(tmp_path / "x.safetensors")
    weights = vgg_files["simple-faster-rcnn"][0]
    code, _, errors = run("weights", "compare", tmp_path / "x.safetensors", weights, "--images", folder / "photos")
    assert (code, f"{weights}: detects 5 classes; " in errors) == (3, True)
    assert "x.safetensors: 2." in errors


def test_results_by_cocos_numbers(tmp_path: Path) -> None:
    files = [tmp_path / "000000000139.png", tmp_path / "7.png"]
    for file in files:
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file)
    rows = [{"image_id": 139, "category_id": COCO_IDS[-1], "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    read = read_results(tmp_path / "r.json", files, coco_names())
    assert (read.images.tolist(), read.class_ids.tolist()) == ([0], [79])
    assert read.boxes.tolist() == [[1, 2, 4, 6]]


def test_torchvision_itself_is_the_oracle(photos: list[Pixels]) -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

    torch.manual_seed(0)
    state = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    state["roi_heads.box_predictor.cls_score.bias"] = torch.tensor([0.0, 1.0, -1.0])
    config = import_torchvision(state).config
    oracle = reference_of(Checkpoint(Path("a.pth"), state), "torchvision", config)
    found = detect_all(oracle, photos[:1])
    assert oracle.name == "torchvision itself"
    assert len(found) > 0
    assert set(found.class_ids) <= {0, 1}
    height, width = photos[0].shape[:2]
    assert (found.boxes <= [width, height, width, height]).all()


WIDTH = 64  # units of the two linear layers
OF_CAFFE = {"rpn_conv1": 1, "conv1": 0.02, "rpn_cls_score": 0.3, "rpn_bbox_pred": 0.1, "cls_score": 3, "bbox_pred": 0.1}
OF_SIMPLE = {"rpn.score": 0.3, "rpn.loc": 0.1, "head.score": 3, "cls_loc": 0.5}


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory, folder: Path, photos: list[Pixels]) -> dict[str, list[Path]]:
    """py-faster-rcnn's ZF as Caffe writes it and the configuration of an experiment, simple-faster-rcnn's VGG16."""
    root = tmp_path_factory.mktemp("vgg")
    files: dict[str, list[Path]] = {}
    for name, project, shapes, factors in (
        ("py-faster-rcnn", py_faster_rcnn, py_faster_rcnn_shapes("ZF", WIDTH), OF_CAFFE),
        ("simple-faster-rcnn", simple_faster_rcnn, simple_faster_rcnn_shapes(WIDTH), OF_SIMPLE),
    ):
        made = make_state(shapes, torch.float32, factors)
        numbers = replace(project.numbers_of(made), size=160, max_size=400)
        small = project.resized(photos[0], numbers)
        project.detect(made, small, photos[0].shape[:2], numbers, balancing(made))
        if name == "py-faster-rcnn":
            files[name] = [root / "zf.caffemodel", root / "zf.yml"]
            files[name][0].write_bytes(caffemodel({key: value.numpy() for key, value in made.items()}))
            files[name][1].write_text("TEST: {SCALES: !!python/tuple [160], MAX_SIZE: 400, HAS_RPN: true}\n")
        else:
            files[name] = [root / "fasterrcnn_11291000.pth"]
            left = {"config": {"caffe_pretrain": False, "load_path": None}, "vis_info": {"index": {"loss": 3}}}
            torch.save({"model": made, "other_info": {}, **left}, files[name][0])
    return files


@pytest.mark.parametrize("project", ["py-faster-rcnn", "simple-faster-rcnn"])
def test_vgg_and_zf_are_converted_with_a_certificate(
    project: str, vgg_files: dict[str, list[Path]], folder: Path, tmp_path: Path, run: Callable[..., tuple]
) -> None:
    weights, *settings = vgg_files[project]
    out = tmp_path / "mine.safetensors"
    given = ["--config", *settings] if settings else ["--set", "model.size=160", "--set", "model.max_size=400"]
    words = ("--names", *NAMES, "--licence", "CC-BY-4.0", "--images", folder / "photos", "--out", out)
    code, said, errors = run("weights", "convert", weights, *given, *words)
    assert code == 0, errors
    assert f"of {project}, 5 classes" in said
    assert "The same detections." in said
    certificate = json.loads(out.with_suffix(".certificate.json").read_text())
    assert certificate["oracle"]["computed_by"] == f"a reference of {project}'s rules"
    assert all(view["expected"] > 10 for view in certificate["batches"])
    assert "CC-BY-4.0" in run("weights", "card", out)[1]
    code, said, _ = run("weights", "compare", out, weights, *given[: 2 * len(settings)], "--images", folder / "photos")
    assert code == 0, said


@pytest.mark.parametrize(
    ("project", "field", "fault"),
    [
        (
            "py-faster-rcnn",
            "edges=half_open",
            "roi.edges and box_head.edges and rpn.edges: caffe there, half_open here",
        ),
        ("py-faster-rcnn", "anchors.rounding=none", "anchors.rounding: caffe there, none here"),
        ("simple-faster-rcnn", "backbone.pooling=ceil", "backbone.pooling: floor there, ceil here"),
        ("simple-faster-rcnn", "anchors.offset=7.5", "anchors.offset: 8.0 there, 7.5 here"),
    ],
)
def test_a_wrong_convention_of_vgg_is_named(
    project: str,
    field: str,
    fault: str,
    vgg_files: dict[str, list[Path]],
    folder: Path,
    tmp_path: Path,
    run: Callable[..., tuple],
) -> None:
    weights, *settings = vgg_files[project]
    given = ["--config", *settings] if settings else []
    fields = [field, *([] if settings else ["size=160", "max_size=400"])]
    words = (
        *[word for each in fields for word in ("--set", f"model.{each}")],
        "--names",
        *NAMES,
        "--images",
        folder / "photos",
        "--count",
        1,
    )
    code, said, _ = run("weights", "convert", weights, *given, *words, "--out", tmp_path / "mine.safetensors")
    assert code == 5
    assert f"Explained by {fault}" in said
    assert "With that nothing differs." in said
