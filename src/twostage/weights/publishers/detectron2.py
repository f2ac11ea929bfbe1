"""detectron2's model zoo.

Paths are those of its model_zoo/model_zoo.py, numbers those of its MODEL_ZOO.md (at 02b5c4e2). The latter says that a
file's name holds the first digits of its MD5, and that the models are under CC BY-SA 3.0; the code is under Apache-2.0.
Sizes are not given. Left out are models that twostage does not have, comparisons with the first Detectron, Cityscapes,
and what has a configuration and no file: masks that know no class, and a pyramid on Pascal VOC.

`settings` are those of a configuration that its weights do not show and that the importer does not take for granted.
With them every entry was compared once with the model that detectron2 itself builds of its configuration: the names and
shapes of all tensors, and, but for those of 100 to 400 epochs, all settings (2026-11-29).
"""

from types import MappingProxyType

from twostage.weights.publishers.entry import Published, Publisher

DETECTRON2 = Publisher(
    "detectron2",
    "https://dl.fbaipublicfiles.com/detectron2/",
    "md5",
    code="Apache-2.0",
    weights="CC-BY-SA-3.0",
    note="share alike: what is adapted from them goes under the same licence",
)
_COMPARED = "the same detections as a reference of detectron2's rules, with random weights and ResNet-50"
_IN_PART = (
    "compared with a reference as its kind on ResNet-50 is; what is its own has the names and shapes of detectron2"
)
# Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml and .._9x_syncbn.yaml
_SCRATCH = MappingProxyType({"MODEL": {"PIXEL_STD": [57.375, 57.12, 58.395], "RESNETS": {"STRIDE_IN_1X1": False}}})
# Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml and .._3x: for training alone
_CASCADE = MappingProxyType({"MODEL": {"RPN": {"POST_NMS_TOPK_TRAIN": 2000}}})

# Our model and what its training was like; configuration, number and digits in the path; AP of boxes and of masks.
_TABLE = """
faster_rcnn_resnet50_c4 1x COCO-Detection/faster_rcnn_R_50_C4_1x 137257644 721ade 35.7
faster_rcnn_resnet50_dc5 1x COCO-Detection/faster_rcnn_R_50_DC5_1x 137847829 51d356 37.3
faster_rcnn_resnet50_fpn 1x COCO-Detection/faster_rcnn_R_50_FPN_1x 137257794 b275ba 37.9
faster_rcnn_resnet50_c4 3x COCO-Detection/faster_rcnn_R_50_C4_3x 137849393 f97cb7 38.4
faster_rcnn_resnet50_dc5 3x COCO-Detection/faster_rcnn_R_50_DC5_3x 137849425 68d202 39.0
faster_rcnn_resnet50_fpn 3x COCO-Detection/faster_rcnn_R_50_FPN_3x 137849458 280758 40.2
faster_rcnn_resnet101_c4 3x COCO-Detection/faster_rcnn_R_101_C4_3x 138204752 298dad 41.1
faster_rcnn_resnet101_dc5 3x COCO-Detection/faster_rcnn_R_101_DC5_3x 138204841 3e0943 40.6
faster_rcnn_resnet101_fpn 3x COCO-Detection/faster_rcnn_R_101_FPN_3x 137851257 f6e8b1 42.0
faster_rcnn_resnext101_fpn 3x COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x 139173657 68b088 43.0
retinanet_resnet50_fpn 1x COCO-Detection/retinanet_R_50_FPN_1x 190397773 bfca0b 37.4
retinanet_resnet50_fpn 3x COCO-Detection/retinanet_R_50_FPN_3x 190397829 5bd44e 38.7
retinanet_resnet101_fpn 3x COCO-Detection/retinanet_R_101_FPN_3x 190397697 971ab9 40.4
mask_rcnn_resnet50_c4 1x COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x 137259246 9243eb 36.8 32.2
mask_rcnn_resnet50_dc5 1x COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x 137260150 4f86c3 38.3 34.2
mask_rcnn_resnet50_fpn 1x COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x 137260431 a54504 38.6 35.2
mask_rcnn_resnet50_c4 3x COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x 137849525 4ce675 39.8 34.4
mask_rcnn_resnet50_dc5 3x COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x 137849551 84107b 40.0 35.9
mask_rcnn_resnet50_fpn 3x COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x 137849600 f10217 41.0 37.2
mask_rcnn_resnet101_c4 3x COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x 138363239 a2914c 42.6 36.7
mask_rcnn_resnet101_dc5 3x COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x 138363294 0464b7 41.9 37.3
mask_rcnn_resnet101_fpn 3x COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x 138205316 a3ec72 42.9 38.6
mask_rcnn_resnext101_fpn 3x COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x 139653917 2d9806 44.3 39.5
cascade_mask_rcnn_resnet50_fpn 1x Misc/cascade_mask_rcnn_R_50_FPN_1x 138602847 e9d89b 42.1 36.4
cascade_mask_rcnn_resnet50_fpn 3x Misc/cascade_mask_rcnn_R_50_FPN_3x 144998488 480dd8 44.3 38.5
mask_rcnn_resnet50_fpn 3x-gn Misc/mask_rcnn_R_50_FPN_3x_gn 138602888 dc5d9e 42.6 38.6
mask_rcnn_resnet50_fpn 3x-syncbn Misc/mask_rcnn_R_50_FPN_3x_syncbn 169527823 3b3c51 41.9 37.8
mask_rcnn_resnet50_fpn 3x-scratch-gn Misc/scratch_mask_rcnn_R_50_FPN_3x_gn 138602908 01ca85 39.9 36.6
mask_rcnn_resnet50_fpn 9x-scratch-gn Misc/scratch_mask_rcnn_R_50_FPN_9x_gn 183808979 da7b4c 43.7 39.6
mask_rcnn_resnet50_fpn 9x-scratch-syncbn Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn 184226666 5ce33e 43.6 39.3
mask_rcnn_resnet50_fpn 100ep new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ 42047764 bb69de 44.6 40.3
mask_rcnn_resnet50_fpn 200ep new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ 42047638 89a8d3 46.3 41.7
mask_rcnn_resnet50_fpn 400ep new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ 42019571 14d201 47.4 42.5
mask_rcnn_resnet101_fpn 100ep new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ 42025812 4f7b58 46.4 41.6
mask_rcnn_resnet101_fpn 200ep new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ 42131867 0bb7ae 48.0 43.1
mask_rcnn_resnet101_fpn 400ep new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ 42073830 f96b26 48.9 43.7
faster_rcnn_resnet50_c4 voc PascalVOC-Detection/faster_rcnn_R_50_C4 142202221 b1acc2 51.9
"""


def _entry(model: str, training: str, configuration: str, number: str, digits: str, *scores: str) -> Published:
    score, masks = float(scores[0]), float(scores[1]) if scores[1:] else None
    alike = model.endswith("resnet50_fpn") or model in ("faster_rcnn_resnet50_c4", "faster_rcnn_resnet50_dc5")
    return Published(
        f"{model}-detectron2-{training}",
        DETECTRON2,
        f"{configuration}/{number}/model_final_{digits}.pkl",
        score,
        masks,
        data="VOC 2007" if training == "voc" else "COCO",
        settings=_SCRATCH if training.startswith("9x-scratch") else _CASCADE if model.startswith("cascade") else None,
        proof=_COMPARED if alike and training in ("1x", "3x", "voc") else _IN_PART,
    )


ENTRIES = tuple(_entry(*line.split()) for line in _TABLE.strip().splitlines())
