"""What an image size costs."""

from collections.abc import Callable
from typing import cast

import numpy as np

from twostage import Dataset
from twostage.inspection.anchor_reach import AnchorModelConfig, anchor_positions, best_iou, shares, used_objects
from twostage.inspection.image_sizes import image_sizes
from twostage.models.configure import configure
from twostage.models.zoo import named


def test_rows_of_an_image_of_256_by_512(make_blank: Callable[..., Dataset]) -> None:
    dataset = make_blank([(256, 512)], [[[0, 0, 10, 40], [0, 0, 30, 30], [50, 50, 150, 150]]])
    config = cast(AnchorModelConfig, configure(named("faster_rcnn_tiny_fpn"), {"size": 128, "max_size": 256}))
    rows = {row["size"]: row for row in image_sizes(dataset, config, used_objects(dataset), config.image.size)}
    assert list(rows) == [64, 96, 128, 192, 256]
    assert [row["max_size"] for row in rows.values()] == [128, 192, 256, 384, 512]
    assert [row["median_side"] for row in rows.values()] == [7.5, 11.2, 15, 22.5, 30]
    assert (rows[64]["below_8"], rows[64]["below_16"]) == (0.6667, 0.6667)
    assert (rows[256]["below_8"], rows[256]["below_16"]) == (0, 0.3333)
    assert [row["pixels"] for row in rows.values()] == [0.25, 0.562, 1, 2.25, 4]
    alone = configure(config, {"size": 192})
    iou = best_iou(anchor_positions(dataset, alone), alone)
    assert rows[192]["iou50"] == shares(iou)["iou50"]


def test_a_model_without_anchors_and_no_objects(make_blank: Callable[..., Dataset]) -> None:
    config = cast(AnchorModelConfig, named("fast_rcnn_tiny"))
    dataset = make_blank([(320, 320)], [[[0, 0, 10, 40]]])
    (row, *_) = image_sizes(dataset, config, used_objects(dataset), config.image.size)
    assert (row["below_8"], row["iou50"]) == (1, -1)
    (row, *_) = image_sizes(dataset, config, np.zeros(1, dtype=bool), config.image.size)
    assert (row["median_side"], row["below_8"]) == (-1, -1)
