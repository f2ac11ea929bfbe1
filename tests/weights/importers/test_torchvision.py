"""torchvision's files: complete, class by class, old ones too, and a small proof that they mean the same here."""

import re
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectors import make_model
from torch import Tensor
from torchvision.models import detection

from twostage import Detector
from twostage.data.scenes import EASY, HARD, make_scene
from twostage.errors import DataError, UsageError
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.weights.fit import channel_last, load_all
from twostage.weights.importers.imported import Imported
from twostage.weights.importers.torchvision import COCO_HOLES, from_torchvision, import_torchvision

MODELS = {
    "faster_rcnn_resnet50_fpn": detection.fasterrcnn_resnet50_fpn,
    "faster_rcnn_resnet50_fpn_v2": detection.fasterrcnn_resnet50_fpn_v2,
    "mask_rcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "mask_rcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
    "faster_rcnn_mobilenet_v3_large_fpn": detection.fasterrcnn_mobilenet_v3_large_fpn,
    "faster_rcnn_mobilenet_v3_large_320_fpn": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
}
MOBILE = "faster_rcnn_mobilenet_v3_large_320_fpn"


def shapes(name: str, outputs: int) -> dict[str, Tensor]:
    """The state dict of torchvision's model, without memory for its numbers."""
    with torch.device("meta"):
        return MODELS[name](weights=None, weights_backbone=None, num_classes=outputs).state_dict()


def numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Row i of the last layers holds i, so that one sees where it went."""
    last = {n: t for n, t in state.items() if "box_predictor" in n or "mask_fcn_logits" in n}
    rows = {n: torch.arange(len(t)).float().view(-1, *[1] * (t.ndim - 1)).expand(t.shape) for n, t in last.items()}
    return state | rows


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_finds_its_place_and_none_is_left(name: str) -> None:
    with torch.device("meta"):
        own = make_model(name, 7).state_dict()
    own = {n: t.shape for n, t in own.items() if not n.endswith("num_batches_tracked")}
    found = {n: t.shape for n, t in from_torchvision(shapes(name, 8), 7).items()}
    assert found == own


@pytest.mark.parametrize("name", [n for n in MODELS if "320" not in n])
@pytest.mark.parametrize("outputs", [91, 8])
def test_the_model_is_read_from_the_tensors(name: str, outputs: int) -> None:
    imported = import_torchvision(shapes(name, outputs))
    assert imported.model == name
    assert imported.num_classes == (80 if outputs == 91 else 7)
    require_complete(imported)


@pytest.mark.parametrize(("depth", "build_body"), [(18, "resnet18"), (101, "resnet101")])
def test_a_body_of_another_depth(depth: int, build_body: str) -> None:
    with torch.device("meta"):
        body = detection.backbone_utils.resnet_fpn_backbone(backbone_name=build_body, weights=None)
        state = detection.FasterRCNN(body, num_classes=4).state_dict()
    imported = import_torchvision(state)
    assert imported.model == f"faster_rcnn_resnet{depth}_fpn"
    require_complete(imported)


@pytest.mark.parametrize("version", [1, 2])
def test_retinanet_gives_the_same_detections(version: int) -> None:
    torch.manual_seed(0)
    make = detection.retinanet_resnet50_fpn if version == 1 else detection.retinanet_resnet50_fpn_v2
    theirs = make(weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=256).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if name.endswith("cls_logits.weight"):
                value.mul_(20 if version == 1 else 3)
        theirs.head.classification_head.cls_logits.bias.fill_(-2)
        # Class 0 is background, which no training lets win.
        theirs.head.classification_head.cls_logits.bias.view(9, 4)[:, 0] = -20
    imported = import_torchvision(theirs.state_dict())
    assert imported.model == "retinanet_resnet50_fpn"
    model = build(configure(imported.config, {"size": 128, "max_size": 256}), 3)
    load_all(model, imported.tensors, "these")
    image = make_scene(0, 1, 2, style=HARD).image[:150]
    ours = Detector(model, imported.model, ["a", "b", "c"], device="cpu").predict(image.copy(), conf=0.05)
    with torch.no_grad():
        expected = theirs([torch.tensor(image).permute(2, 0, 1) / 255])[0]
    assert len(ours) == len(expected["boxes"]) > 10
    assert sorted(ours.class_ids.tolist()) == sorted((expected["labels"] - 1).tolist())
    distance = (torch.tensor(ours.boxes)[:, None] - expected["boxes"]).abs().amax(2)
    assert distance.min(dim=1).values.max() < 1e-2
    torch.testing.assert_close(torch.tensor(ours.scores), expected["scores"], atol=1e-5, rtol=0)


def require_complete(imported: Imported) -> None:
    """That the tensors are those of the model, no more and no fewer."""
    with torch.device("meta"):
        own = build(imported.config, imported.num_classes).state_dict()
    own = {n: t.shape for n, t in own.items() if not n.endswith("num_batches_tracked")}
    assert {n: t.shape for n, t in imported.tensors.items()} == own


# --- classes


def test_the_holes_are_those_of_torchvisions_own_list() -> None:
    categories = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert len(categories) == 91
    assert [i for i, name in enumerate(categories) if name == "N/A"] == [*COCO_HOLES]


def test_91_outputs_become_80_classes() -> None:
    found = from_torchvision(numbered(shapes(MOBILE, 91)), 80)
    ids = [i for i in range(91) if i not in COCO_HOLES]
    assert len(ids) == 81
    assert found["head.classes.weight"][:, 0].tolist() == ids
    assert found["head.classes.bias"].tolist() == ids
    boxes = [4 * i + side for i in ids[1:] for side in range(4)]
    assert found["head.deltas.weight"][:, 0].tolist() == boxes
    assert found["head.deltas.bias"].tolist() == boxes


def test_masks_keep_the_classes_that_boxes_keep_and_none_of_background() -> None:
    found = from_torchvision(numbered(shapes("mask_rcnn_resnet50_fpn", 91)), 80)
    ids = [i for i in range(1, 91) if i not in COCO_HOLES]
    assert found["head.mask.classes.weight"][:, 0].tolist() == ids
    assert found["head.mask.classes.bias"].tolist() == ids
    assert found["head.box.classes.bias"].tolist() == [0, *ids]


def test_other_heads_keep_every_class_and_lose_the_background_box() -> None:
    found = from_torchvision(numbered(shapes(MOBILE, 91)), 90)
    assert found["head.classes.bias"].tolist() == [*range(91)]
    assert found["head.deltas.bias"].tolist() == [*range(4, 364)]


@pytest.mark.parametrize(("outputs", "names"), [(91, 20), (21, 80), (4, 4)])
def test_another_number_of_classes_is_said(outputs: int, names: int) -> None:
    with pytest.raises(DataError, match=rf"have {outputs - 1} classes.*{names} names are given.*Give {outputs - 1} na"):
        from_torchvision(shapes(MOBILE, outputs), names)


# --- old files


@pytest.mark.parametrize("name", [n for n in MODELS if "v2" not in n])
def test_names_before_torchvision_0_13(name: str) -> None:
    """The pyramid had no inner numbering, the proposal network's convolution none at all; counters were there."""
    new = shapes(name, 8)
    old = {}
    for key, tensor in new.items():
        key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", key)
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", key)
        old[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    assert old.keys() != new.keys()
    a, b = from_torchvision(old, 7), from_torchvision(new, 7)
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}


# --- files of something else


def test_a_classification_network_is_refused() -> None:
    with pytest.raises(DataError, match="not a torchvision Faster R-CNN's weights"):
        from_torchvision({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 512)}, 9)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (detection.maskrcnn_resnet50_fpn, "faster_rcnn_resnet50_fpn"),
        (detection.fasterrcnn_resnet50_fpn, "faster_rcnn_resnet50_fpn_v2"),
        (detection.fasterrcnn_resnet50_fpn, "faster_rcnn_resnet101_fpn"),
        (detection.fasterrcnn_mobilenet_v3_large_fpn, "faster_rcnn_resnet50_fpn"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(theirs: type, ours: str) -> None:
    with torch.device("meta"):
        state = theirs(weights=None, weights_backbone=None, num_classes=4).state_dict()
        model = make_model(ours, 3)
    with pytest.raises(DataError, match=r"these weights are not this model's: they (lack|have unknown|differ)"):
        load_all(model, from_torchvision(state, 3), "the torchvision weights")


def test_an_unknown_source_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'torchvision'"):
        Detector.from_state_dict({}, source="torchvison", model=MOBILE, names=["a"])


# --- arithmetic


def test_fc6_reads_the_same_region_in_another_order() -> None:
    weight, region = torch.randn(5, 8 * 3 * 3), torch.randn(8, 3, 3)
    turned = channel_last(weight, 8) @ region.permute(1, 2, 0).flatten()
    torch.testing.assert_close(turned, weight @ region.flatten())


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = Path(__file__).parents[3] / "benchmarks"
    if not folder.is_dir():
        pytest.skip("no benchmarks beside the tests")
    monkeypatch.syspath_prepend(str(folder))
    import parity

    return parity


@pytest.mark.slow
def test_the_same_detections_and_losses_on_generated_images(parity: ModuleType) -> None:
    """The parity benchmark on two small images; on real photos and with all models it runs under benchmarks/."""
    photos = []
    for number in range(2):
        scene = make_scene(0, 0, number, style=HARD if number % 2 else EASY)
        boxes = torch.tensor(scene.boxes, dtype=torch.float32)
        photos.append(parity.Photo(f"scene {number}", scene.image, boxes, torch.tensor(scene.labels)))
    wanted = Namespace(size=192, seed=0, batch=[1, 2], arithmetic=("float32", "float64"))
    rows, faults = parity.compare(MOBILE, photos, wanted)
    assert not faults
    assert [row[1:4] for row in rows] == [("float32", 1, 2), ("float32", 2, 2), ("float64", 1, 2), ("float64", 2, 2)]
    scores = dict(zip(parity.HEADER, rows[2], strict=True))["score max"]
    assert float(scores) < 1e-7  # what rounding decides in float32 is decided alike in float64


def test_the_parity_benchmark_would_see_a_difference(parity: ModuleType) -> None:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(100, 2, generator=g) * 100
    boxes = torch.cat([corner, corner + 30], dim=1)
    scores = torch.linspace(0.9, 0.2, 100)
    labels = torch.arange(100) % 7
    theirs = parity.Found(boxes, scores, labels)
    order = torch.arange(100)
    order[[10, 11]] = torch.tensor([11, 10])

    def faults(ours: tuple[Tensor, Tensor, Tensor]) -> list[str]:
        tally = parity.Tally()
        tally.add("photo", theirs, parity.Found(*ours))
        return tally.faults()

    assert not faults((boxes, scores, labels))
    assert faults((boxes + 0.002, scores, labels)) == ["boxes differ by 2.0e-03 px in the median"]
    assert faults((boxes + 0.02 * (order == 3)[:, None], scores, labels)) == ["a box differs by 2.0e-02 px"]
    assert faults((boxes[order], scores, labels[order])) == ["photo: 2 of 100 places differ, number 11 the first"]
    assert faults((boxes, scores, labels + (order == 50))) == ["photo: 1 of 100 places differ, number 51 the first"]
    assert faults((boxes[:-1], scores[:-1], labels[:-1])) == ["photo: 1 of 100 places differ, number 100 the first"]
    assert len(faults((boxes[1:], scores[1:], labels[1:]))) > 0
    last = boxes + 50 * (order == 99)[:, None]
    assert not faults((last, scores, labels))  # another one of the same score at the cut
    assert len(faults((last, scores - 2e-5 * (order == 99), labels))) == 1
    tied = scores.clone()
    tied[11] = tied[10] - 5e-6
    theirs = parity.Found(boxes, tied, labels)
    assert not faults((boxes[order], tied[order], labels[order]))
