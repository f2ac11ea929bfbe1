"""mmdetection's model zoo.

File names and numbers are those of the metafile.yml in each family's folder of its configs/ (version 3.3.0). The digits
at the end of a name are the first of the file's SHA-256 (its tools/model_converters/publish_model.py); sizes are not
given. The code is under Apache-2.0. The licence of the weights was asked for in its issue 11484, without an answer.

Of each ResNet those of the shortest and longest schedule are here, of each ResNeXt those of the longest. Those on C4
and DC5 are of the style "caffe" without saying so in their names here. Left out are parts that twostage does not
have; Mask R-CNN on ResNeXt-101 with 32 groups of 8, of which the metafile that was read names no file; and Faster
R-CNN on ResNet-101 in the style "caffe", 3x, whose configuration has the images of the other style: only its file can
say which it learned from.

Every configuration was compared once with what the importer takes for granted; they differ in the style "caffe" alone
(2026-11-29).
"""

import re
from types import MappingProxyType

from twostage.weights.publishers.entry import Published, Publisher

MMDETECTION = Publisher(
    "mmdetection",
    "https://download.openmmlab.com/mmdetection/v2.0/",
    "sha256",
    code="Apache-2.0",
    weights="no stated licence",
    note="asked in mmdetection's issue 11484, and not answered",
)
_COMPARED = "the same detections as a reference of mmdetection's rules, with random weights and ResNet-50"
_IN_PART = "compared with a reference as its kind on ResNet-50 is; what is its own is read by names and shapes"
_TYPES = {
    "faster_rcnn": "FasterRCNN",
    "mask_rcnn": "MaskRCNN",
    "cascade_rcnn": "CascadeRCNN",
    "cascade_mask_rcnn": "CascadeRCNN",
    "htc": "HybridTaskCascade",
    "retinanet": "RetinaNet",
}

# The name of the configuration, what follows it in the file's name, AP of boxes and of masks.
_TABLE = """
faster_rcnn_r50_caffe_c4_1x 20220316_150152-3f885b85 35.6
faster_rcnn_r50_caffe_dc5_1x 20201030_151909-531f0f43 37.2
faster_rcnn_r50_caffe_dc5_mstrain_3x 20201028_002107-34a53b2c 38.7
faster_rcnn_r50_caffe_fpn_1x bbox_mAP-0.378_20200504_180032-c5925ee5 37.8
faster_rcnn_r50_caffe_fpn_mstrain_3x 20210526_095054-1f77628b 39.9
faster_rcnn_r50_fpn_1x 20200130-047c8118 37.4
faster_rcnn_r50_fpn_mstrain_3x 20210524_110822-e10bd31c 40.3
faster_rcnn_r101_caffe_fpn_1x bbox_mAP-0.398_20200504_180057-b269e9dd 39.8
faster_rcnn_r101_fpn_1x 20200130-f513f705 39.4
faster_rcnn_r101_fpn_mstrain_3x 20210524_110822-4d4d2ca8 41.8
faster_rcnn_x101_32x4d_fpn_mstrain_3x 20210524_124151-16b9b260 42.5
faster_rcnn_x101_32x8d_fpn_mstrain_3x 20210604_182954-002e082a 42.4
faster_rcnn_x101_64x4d_fpn_mstrain_3x 20210524_124528-26c63de6 43.1
mask_rcnn_r50_caffe_fpn_1x bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859 38.0 34.4
mask_rcnn_r50_caffe_fpn_mstrain-poly_3x bbox_mAP-0.408__segm_mAP-0.37_20200504_163245-42aa3d00 40.8 37.0
mask_rcnn_r50_fpn_1x 20200205-d4b0c5d6 38.2 34.7
mask_rcnn_r50_fpn_mstrain-poly_3x 20210524_201154-21b550bb 40.9 37.1
mask_rcnn_r101_caffe_fpn_1x 20200601_095758-805e06c1 40.4 36.4
mask_rcnn_r101_caffe_fpn_mstrain-poly_3x 20210526_132339-3c33ce02 42.9 38.5
mask_rcnn_r101_fpn_1x 20200204-1efe0ed5 40.0 36.1
mask_rcnn_r101_fpn_mstrain-poly_3x 20210524_200244-5675c317 42.7 38.5
mask_rcnn_x101_32x4d_fpn_mstrain-poly_3x 20210524_201410-abcd7859 43.6 39.0
mask_rcnn_x101_64x4d_fpn_mstrain-poly_3x 20210526_120447-c376f129 44.5 39.7
cascade_rcnn_r50_caffe_fpn_1x bbox_mAP-0.404_20200504_174853-b857be87 40.4
cascade_rcnn_r50_fpn_1x 20200316-3dc56deb 40.3
cascade_rcnn_r50_fpn_20e bbox_mAP-0.41_20200504_175131-e9872a90 41.0
cascade_rcnn_r101_caffe_fpn_1x bbox_mAP-0.423_20200504_175649-cab8dbd5 42.3
cascade_rcnn_r101_fpn_1x 20200317-0b6a2fbf 42.0
cascade_rcnn_r101_fpn_20e bbox_mAP-0.425_20200504_231812-5057dcc5 42.5
cascade_rcnn_x101_32x4d_fpn_20e 20200906_134608-9ae0a720 43.7
cascade_rcnn_x101_64x4d_fpn_20e 20200509_224357-051557b1 44.5
cascade_mask_rcnn_r50_caffe_fpn_1x bbox_mAP-0.412__segm_mAP-0.36_20200504_174659-5004b251 41.2 36.0
cascade_mask_rcnn_r50_caffe_fpn_mstrain_3x 20210707_002651-6e29b3a6 44.0 38.1
cascade_mask_rcnn_r50_fpn_1x 20200203-9d4dcb24 41.2 35.9
cascade_mask_rcnn_r50_fpn_mstrain_3x 20210628_164719-5bdc3824 44.3 38.5
cascade_mask_rcnn_r101_caffe_fpn_1x bbox_mAP-0.432__segm_mAP-0.376_20200504_174813-5c1e9599 43.2 37.6
cascade_mask_rcnn_r101_caffe_fpn_mstrain_3x 20210707_002620-a5bd2389 45.4 39.5
cascade_mask_rcnn_r101_fpn_1x 20200203-befdf6ee 42.9 37.3
cascade_mask_rcnn_r101_fpn_mstrain_3x 20210628_165236-51a2d363 45.5 39.6
cascade_mask_rcnn_x101_32x4d_fpn_mstrain_3x 20210706_225234-40773067 46.3 40.1
cascade_mask_rcnn_x101_64x4d_fpn_mstrain_3x 20210719_210311-d3e64ba0 46.6 40.3
htc_r50_fpn_1x 20200317-7332cf16 42.3 37.4
htc_r50_fpn_20e 20200319-fe28c577 43.3 38.3
htc_r101_fpn_20e 20200317-9b41b48f 44.8 39.6
htc_x101_32x4d_fpn_16x1_20e 20200318-de97ae01 46.1 40.5
htc_x101_64x4d_fpn_16x1_20e 20200318-b181fd7a 47.0 41.4
retinanet_r18_fpn_1x 20220407_171055-614fd399 31.7
retinanet_r50_caffe_fpn_1x 20200531-f11027c5 36.3
retinanet_r50_fpn_1x 20200130-c2398f9e 36.5
retinanet_r50_fpn_mstrain_3x 20210718_220633-88476508 39.5
retinanet_r101_caffe_fpn_1x 20200531-b428fa0f 38.5
retinanet_r101_caffe_fpn_mstrain_3x 20210721_063439-88a8a944 40.7
retinanet_r101_fpn_1x 20200130-7a93545f 38.5
retinanet_r101_fpn_mstrain_3x 20210720_214650-7ee888e0 41.0
retinanet_x101_32x4d_fpn_2x 20200131-237fc5e1 40.1
retinanet_x101_64x4d_fpn_mstrain_3x 20210719_051838-022c2187 41.6
"""
_CONFIGURATION = re.compile(
    r"(?P<family>[a-z_]+?)_(?P<body>r\d+|x101_\d+x\d+d)(?P<caffe>_caffe)?_(?P<kind>fpn|c4|dc5)"
    r"(_mstrain|_mstrain-poly|_16x1)?_(?P<schedule>1x|2x|3x|20e)"
)


def _entry(configuration: str, rest: str, *scores: str) -> Published:
    found = _CONFIGURATION.fullmatch(configuration)
    assert found is not None, configuration
    family, body, kind, schedule = (found[part] for part in ("family", "body", "kind", "schedule"))
    caffe = found["caffe"] is not None and kind == "fpn"
    ours = "hybrid_task_cascade" if family == "htc" else family
    network = body.replace("x101", "resnext101") if body.startswith("x") else f"resnet{body[1:]}"
    folder = "cascade_rcnn" if family.startswith("cascade") else family
    alike = body == "r50" and not caffe and (kind == "fpn" or family == "faster_rcnn")
    return Published(
        f"{ours}_{network}_{kind}-mmdetection-{schedule}{'-caffe' if caffe else ''}",
        MMDETECTION,
        f"{folder}/{configuration}_coco/{configuration}_coco_{rest}.pth",
        float(scores[0]),
        float(scores[1]) if scores[1:] else None,
        settings=_caffe(_TYPES[family]) if caffe else None,
        proof=_COMPARED if alike else _IN_PART,
    )


def _caffe(kind: str) -> MappingProxyType:
    """What no tensor of a pyramid shows, as its configuration has it."""
    images = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}
    return MappingProxyType({"model": {"type": kind, "data_preprocessor": images, "backbone": {"style": "caffe"}}})


ENTRIES = tuple(_entry(*line.split()) for line in _TABLE.strip().splitlines())
