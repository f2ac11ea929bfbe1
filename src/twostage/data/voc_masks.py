"""VOC's `SegmentationObject`: pictures whose pixels hold the number of the object they belong to.

Object k of the XML is the number k, 0 is background and 255 what nobody decided (VOC2012 development kit, section 4.2).
So a picture can tell 254 objects apart.
"""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from twostage.data.flat import NO_MASK, RLE, Mask

FOLDER = "SegmentationObject"
MOST = 254
VOID = 255


def object_masks(path: Path, count: int, size: tuple[int, int]) -> list[Mask]:
    """The mask of each of `count` objects on a picture of this (height, width); none for an object without pixels.

    Raises ValueError where the picture cannot be that of these objects.
    """
    from faster_coco_eval.core import mask as coco

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(f"holds {picture.mode} pixels, not numbers of objects")
            numbers = np.array(picture)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if min(size) > 0 and numbers.shape != size:
        raise ValueError(f"is {numbers.shape[1]} x {numbers.shape[0]}, its picture {size[1]} x {size[0]}")
    if count > MOST:
        raise ValueError(f"cannot tell {count} objects apart: VOC's numbers end at {MOST}. Write the masks as COCO")
    held = np.unique(numbers)
    strange = held[(held > count) & (held != VOID)]
    if len(strange):
        raise ValueError(f"holds the object {strange[0]}, and the XML lists {count}")
    found = []
    for number in range(1, count + 1):
        inside = np.asfortranarray(numbers == number)
        found.append(
            Mask(RLE, coco.encode(inside.view(np.uint8))["counts"], numbers.shape) if inside.any() else NO_MASK
        )
    return found
