import re
from pathlib import Path

import foreign_states
import pytest
import torch
from foreign_states import mmdetection_retinanet_shapes, mmdetection_shapes
from torch import Tensor
from torchvision.models import get_weight
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from twostage.errors import TwostageError, UsageError
from twostage.folders import cache_folder
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.build import build
from twostage.models.zoo import ZOO
from twostage.parity.reference.mmdetection import rules_of
from twostage.weights.fit import load_all
from twostage.weights.importers.detectron2 import STD, from_detectron2
from twostage.weights.importers.mmdetection import from_mmdetection
from twostage.weights.published import ACCURATE, PUBLISHED, SMALL, published
from twostage.weights.publishers import detectron2, mmdetection, torchvision
from twostage.weights.publishers.entry import Published

ENUMS = {
    "vgg16-imagenet": "VGG16_Weights.IMAGENET1K_V1",
    "resnet18-imagenet": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34-imagenet": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50-imagenet": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet50-imagenet-v2": "ResNet50_Weights.IMAGENET1K_V2",
    "resnet101-imagenet": "ResNet101_Weights.IMAGENET1K_V1",
    "resnet101-imagenet-v2": "ResNet101_Weights.IMAGENET1K_V2",
    "mobilenet_v3_large-imagenet": "MobileNet_V3_Large_Weights.IMAGENET1K_V1",
    "mobilenet_v3_large-imagenet-v2": "MobileNet_V3_Large_Weights.IMAGENET1K_V2",
    "faster_rcnn_resnet50_fpn-coco": "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "faster_rcnn_resnet50_fpn_v2-coco": "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
    "faster_rcnn_mobilenet_v3_large_fpn-coco": "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1",
    "faster_rcnn_mobilenet_v3_large_320_fpn-coco": "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
    "mask_rcnn_resnet50_fpn-coco": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    "mask_rcnn_resnet50_fpn_v2-coco": "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
    "retinanet_resnet50_fpn-coco": "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    "retinanet_resnet50_fpn_v2-coco": "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1",
}


def by_name(one: Published) -> str:
    return one.name


@pytest.mark.parametrize("one", torchvision.ENTRIES, ids=by_name)
def test_addresses_and_numbers_are_torchvisions(one: Published) -> None:
    theirs = get_weight(ENUMS[one.name])
    assert one.url == theirs.url
    assert one.size == theirs.meta["_file_size"]
    numbers = theirs.meta["_metrics"]
    assert one.score == (numbers["COCO-val2017"]["box_map"] if one.model else numbers["ImageNet-1K"]["acc@1"])
    assert one.masks == (numbers["COCO-val2017"].get("mask_map") if one.model else None)


def test_names_and_addresses_are_each_ones_own() -> None:
    entries = list(PUBLISHED.values())
    assert len({one.url for one in entries}) == len(entries)
    assert len({one.name for one in entries}) == len(entries)
    assert len({one.original for one in entries}) == len(entries)
    for publisher in (torchvision, detectron2, mmdetection):
        assert all(PUBLISHED[one.name] is one for one in publisher.ENTRIES)


@pytest.mark.parametrize("one", PUBLISHED.values(), ids=by_name)
def test_facts_have_their_form(one: Published) -> None:
    lengths = {"sha256": 8, "md5": 6}
    assert re.fullmatch("[0-9a-f]+", one.digits)
    assert len(one.digits) == lengths[one.publisher.digest]
    assert one.model is None or one.model in ZOO
    assert 20 < one.score < 90
    assert (one.masks is not None) == bool(one.model and ("mask_rcnn" in one.model or "hybrid" in one.model))
    assert one.proof
    assert one.licence
    assert one.package or one.url.startswith("https://")


def test_what_is_proposed_to_a_beginner_exists() -> None:
    assert PUBLISHED[ACCURATE].score > PUBLISHED[SMALL].score
    assert PUBLISHED[ACCURATE].publisher is PUBLISHED[SMALL].publisher is torchvision.TORCHVISION


def mmdetection_state(one: Published, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Tensors without numbers of the shapes of a published detector with a pyramid: torchvision's names of a ResNet,
    behind it the parts of mmdetection."""
    monkeypatch.setattr(foreign_states, "K", 80)
    monkeypatch.setattr(foreign_states, "STUFF", 183)
    assert one.model is not None
    stages = 3 if one.model.startswith(("cascade", "hybrid")) else 0
    htc = one.model.startswith("hybrid")
    shapes = (
        mmdetection_retinanet_shapes()
        if one.model.startswith("retinanet")
        else mmdetection_shapes(stages, mask=one.masks is not None, htc=htc, semantic=htc)
    )
    found = re.search(r"resne(x?)t(\d+)(?:_(\d+)x(\d+)d)?_fpn", one.name)
    assert found is not None
    blocks = {"18": [2, 2, 2, 2], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3]}[found[2]]
    groups, width = (int(found[3]), int(found[4])) if found[1] else (1, 64)
    with torch.device("meta"):
        body = ResNet(BasicBlock if found[2] == "18" else Bottleneck, blocks, groups=groups, width_per_group=width)
        state = {f"backbone.{name}": each for name, each in body.state_dict().items() if not name.startswith("fc.")}
        for name, shape in shapes.items():
            if found[2] == "18" and len(shape) == 4 and re.match(r"neck\.(lateral_convs\.|fpn_convs\.3)", name):
                shape = (shape[0], shape[1] // 4, *shape[2:])
            if not name.startswith("backbone."):
                state[name] = torch.empty(shape)
    return state


OF_PYRAMIDS = [one for one in mmdetection.ENTRIES if "_fpn" in one.name]


@pytest.mark.parametrize("one", OF_PYRAMIDS, ids=by_name)
def test_mmdetections_are_read_as_the_models_they_are_said_to_be(
    one: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = mmdetection_state(one, monkeypatch)
    state["backbone.conv1.weight"] = torch.eye(3)[0, :, None, None].expand(64, 3, 7, 7)  # reads what enters first
    found = from_mmdetection(state, one.settings)
    assert (found.model, found.num_classes) == (one.model, 80)
    with torch.device("meta"):
        load_all(build(found.config, 80), found.tensors, one.name, assign=True)
    assert isinstance(found.config.backbone, ResNetConfig)
    assert found.config.backbone.stride_in_1x1 == one.name.endswith("-caffe")
    assert found.config.image.std == pytest.approx(
        [1 / 255] * 3 if one.name.endswith("-caffe") else (0.229, 0.224, 0.225)
    )
    # BGR in the style "caffe", and in Detectron's ResNeXt; the reference has an own rule for it.
    bgr = one.name.endswith("-caffe") or "32x8d" in one.name
    rules = rules_of(state, one.settings)
    assert rules.bgr == bgr
    assert found.tensors["backbone.body.conv1.weight"][0, :, 0, 0].tolist() == ([0, 0, 1] if bgr else [1, 0, 0])
    for ours, theirs in ((found.config.image.mean, rules.mean), (found.config.image.std, rules.std)):
        assert [255 * value for value in ours] == pytest.approx(theirs[::-1] if bgr else theirs)


@pytest.mark.parametrize(
    ("name", "stride", "std"),
    [
        ("mask_rcnn_resnet50_fpn-detectron2-3x", True, (1, 1, 1)),
        ("mask_rcnn_resnet50_fpn-detectron2-9x-scratch-gn", False, STD),
        ("mask_rcnn_resnet50_fpn-detectron2-9x-scratch-syncbn", False, STD),
    ],
)
def test_what_weights_of_detectron2_do_not_show(name: str, stride: bool, std: tuple[float, ...]) -> None:
    """By the settings beside a name; the tensors are of one kind."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in foreign_states.detectron2_shapes(mask=True).items()}
    config = from_detectron2(state, PUBLISHED[name].settings).config
    assert isinstance(config.backbone, ResNetConfig)
    assert config.backbone.stride_in_1x1 == stride
    assert config.image.std == pytest.approx([value / 255 for value in std])


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'resnet50-imagenet'"):
        published("resnet50-imagnet")


def test_where_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    monkeypatch.delenv("TWOSTAGE_HOME", raising=False)
    assert cache_folder("weights").as_posix().endswith("home/me/.cache/twostage/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder("weights").as_posix().endswith("/cache/twostage/weights")
    monkeypatch.setenv("TWOSTAGE_HOME", "/mine")
    assert cache_folder("weights").as_posix().endswith("/mine/weights")


def test_without_a_home_folder_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TWOSTAGE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(TwostageError, match="Set TWOSTAGE_HOME to a folder"):
        cache_folder("weights")
