"""The peer of the training benchmarks: torchvision's detector around a 2.3 M-parameter residual net with a pyramid, or
around a pretrained network.

Stem of stride 4, one block each of 32, 64, 128 and 256 channels, pyramid of 64; AdamW 1e-3, 50 steps of warm-up,
cosine, gradients clipped at 10, mirrored images. It is fed by our loader and scored by our evaluation, so that nothing
but the detector and its training differ.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded, evaluation_batches, training_batches
from twostage.data.resize import Resize
from twostage.device import arithmetic
from twostage.evaluation.results import Accumulator, Results
from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from twostage.ops.masks import decode, encode
from twostage.ops.paste import paste
from twostage.training.schedule import steps_in
from twostage.weights.file import load_tensors
from twostage.weights.fit import load_all
from twostage.weights.named import find_weights

WIDTHS = (32, 64, 128, 256)
WARMUP = 50
LITE_STATISTICS = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}


class Body(nn.Sequential):
    """Stem and four stages."""

    def __init__(self) -> None:
        stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
            nn.Conv2d(32, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
        )
        stages, inputs = [], 32
        for number, width in enumerate(WIDTHS):
            stride = 1 if number == 0 else 2
            down = None
            if stride != 1 or inputs != width:
                down = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            stages.append(BasicBlock(inputs, width, stride, down))
            inputs = width
        super().__init__(stem, *stages)


class PretrainedLite0(nn.Module):
    """EfficientNet-Lite0 with the ImageNet weights of the Python package, under torchvision's pyramid.

    As torchvision does with its pretrained networks, batch normalisation stays as it is, and stages before the last
    `trained` are fixed.
    """

    out_channels = 64

    def __init__(self, trained: int) -> None:
        super().__init__()
        self.body = EfficientNetLiteConfig().build()
        load_all(self.body, load_tensors(find_weights("efficientnet_lite0-imagenet"))[1], "ImageNet")
        for stage in self.body.get_stages()[: 4 - trained]:
            for module in stage:
                module.requires_grad_(False)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels), 64, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The maps of strides 4 to 64."""
        maps = dict(zip("0123", self.body(x), strict=True))
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


def build_peer(
    num_classes: int, size: int, seed: int = 0, *, masks: bool = False, pretrained: int | None = None
) -> FasterRCNN:
    """The detector; `num_classes` does not count background. With `masks` it is a Mask R-CNN of 64 channels.

    `pretrained` is how many stages of the pretrained EfficientNet-Lite0 are trained; None: the small net, from nothing.
    """
    torch.manual_seed(seed)
    backbone: nn.Module
    if pretrained is None:
        backbone = BackboneWithFPN(Body(), {str(i + 1): str(i) for i in range(4)}, list(WIDTHS), 64)
    else:
        backbone = PretrainedLite0(pretrained)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    heads = {}
    if masks:
        heads = {
            "mask_head": MaskRCNNHeads(64, [64] * 4, 1),
            "mask_predictor": MaskRCNNPredictor(64, 64, num_classes + 1),
        }
    model = (MaskRCNN if masks else FasterRCNN)(
        backbone,
        None if masks else num_classes + 1,
        box_predictor=Predictor(256, num_classes + 1) if masks else None,
        **heads,
        min_size=size,
        max_size=10 * size,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=500,
        box_batch_size_per_image=128,
        _skip_resize=True,
        **({} if pretrained is None else LITE_STATISTICS),
    )
    model.roi_heads.box_head = nn.Sequential(
        nn.Flatten(), nn.Linear(64 * 49, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
    )
    model.roi_heads.box_predictor = Predictor(256, num_classes + 1)
    # Lite0's depthwise convolutions train faster so: half as many steps again in the same time (`results/tried.md`).
    return model if pretrained is None else model.to(memory_format=torch.channels_last)


class Predictor(nn.Module):
    """Class scores and deltas from one vector."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, outputs)
        self.bbox_pred = nn.Linear(width, 4 * outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See torchvision's FastRCNNPredictor."""
        return self.cls_score(x), self.bbox_pred(x)


def peer_inputs(loaded: Loaded) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch of ours as torchvision takes it."""
    images, targets = [], []
    for i, (height, width) in enumerate(loaded.batch.sizes.tolist()):
        valid = loaded.targets.valid[i]
        images.append(loaded.batch.images[i, :, :height, :width].contiguous())
        targets.append({"boxes": loaded.targets.boxes[i][valid], "labels": loaded.targets.labels[i][valid] + 1})
        if loaded.targets.masks is not None:
            frames, cells = (value[i][valid].numpy() for value in loaded.targets.masks)
            pixels = decode(paste(cells.astype(np.float32) / 255, frames, height, width)).reshape(-1, height, width)
            targets[-1]["masks"] = torch.from_numpy(pixels).to(torch.uint8)
    return images, targets


def train_peer(
    model: FasterRCNN,
    data: Dataset,
    resize: Resize,
    *,
    minutes: float,
    batch: int,
    seed: int,
    precision: str,
    peak: float = 1e-3,
) -> int:
    """Train for so many minutes; the number of steps, which it returns, is fitted as ours is."""
    batches: Iterator[Loaded] = training_batches(
        data,
        resize=resize,
        augment=Augment(flip=0.5),
        batch=batch,
        seed=seed,
        workers=0,
        masks=isinstance(model, MaskRCNN),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], peak)
    model.train()
    step, total, durations, start, warm, corrected = 0, None, [], time.perf_counter(), 0.0, False
    while total is None or step < total:
        begun = time.perf_counter()
        rate = peak * min(1.0, (step + 1) / WARMUP)
        if total is not None:
            rate = peak * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = peer_inputs(next(batches))
        with arithmetic(images[0].device, precision):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        step += 1
        durations.append(time.perf_counter() - begun)
        spent = time.perf_counter() - start
        if step == WARMUP:
            warm = spent
            total = step + steps_in(60 * minutes - spent, durations[WARMUP // 2 :])
        elif total is not None and not corrected and step == (WARMUP + total) // 2:
            corrected = True
            total = step + steps_in(60 * minutes - spent, [(spent - warm) / (step - WARMUP)])
    return step


@torch.inference_mode()
def detect_peer(model: FasterRCNN, data: Dataset, resize: Resize) -> Results:
    """Its detections on every image, on the original pixels."""
    model.eval()
    gathered = Accumulator()
    for loaded in evaluation_batches(data, resize=resize, batch=1, workers=0):
        images, _ = peer_inputs(loaded)
        indices = loaded.indices.tolist()
        for index, found in zip(indices, _detect(model, images, data.sizes[indices].tolist()), strict=True):
            masks = encode((found["masks"][:, 0] >= 0.5).numpy()) if "masks" in found else None
            gathered.add(index, found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy() - 1, masks)
    return gathered.results()


def _detect(model: FasterRCNN, images: list[Tensor], sizes: list[list[int]]) -> list[dict[str, Tensor]]:
    """Its forward pass on images that are resized already, with boxes and masks in images of the given sizes."""
    resized, _ = model.transform(images)
    features = model.backbone(resized.tensors)
    proposals, _ = model.rpn(resized, features)
    found, _ = model.roi_heads(features, proposals, resized.image_sizes)
    return model.transform.postprocess(found, resized.image_sizes, [(height, width) for height, width in sizes])
