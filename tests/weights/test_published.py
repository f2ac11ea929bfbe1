import pytest
from torchvision.models import get_weight

from twostage.errors import UsageError
from twostage.folders import cache_folder
from twostage.models.zoo import ZOO
from twostage.weights.published import PUBLISHED, Published, published

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
}


DOWNLOADED = [one for one in PUBLISHED.values() if not one.package]


@pytest.mark.parametrize("one", DOWNLOADED, ids=lambda one: one.name)
def test_addresses_and_numbers_are_torchvisions(one: Published) -> None:
    theirs = get_weight(ENUMS[one.name])
    assert one.url == theirs.url
    assert one.size == theirs.meta["_file_size"]
    numbers = theirs.meta["_metrics"]
    assert one.score == (numbers["COCO-val2017"]["box_map"] if one.model else numbers["ImageNet-1K"]["acc@1"])
    assert len(one.sha256) == 8
    assert one.model is None or one.model in ZOO


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
