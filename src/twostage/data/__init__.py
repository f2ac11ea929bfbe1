"""From files to batches: formats, checks, augmentation, generated scenes."""

from typing import Literal

# A data format is the module of this name here, with its object `FORMAT`; they are tried in this order.
Kind = Literal["yolo", "voc", "coco"]
FORMATS = ("yolo", "voc", "coco", "labelme", "via")  # those that can be written, and those that are only read
