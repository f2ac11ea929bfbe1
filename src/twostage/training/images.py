"""The drawn images of a run folder: a training batch with its targets, and validation predictions."""

from pathlib import Path
from typing import Any

import numpy as np

from twostage.data.batch import Batch, Targets
from twostage.data.dataset import Dataset, select_images
from twostage.data.names import flat_names
from twostage.drawing import draw_boxes, draw_pair, save_picture, tile
from twostage.evaluation.results import Results
from twostage.ops.paste import paste

SHOWN = 8


def save_training_batch(path: Path, batch: Batch, targets: Targets, names: tuple[str, ...]) -> None:
    """The first images of a training batch as the model sees them, with the boxes and masks it should learn."""
    drawn = []
    for i in range(min(SHOWN, len(batch.images))):
        height, width = batch.sizes[i].tolist()
        pixels = (batch.images[i, :, :height, :width] * 255).round().byte().permute(1, 2, 0).numpy()
        valid = targets.valid[i]
        labels = targets.labels[i][valid].numpy()
        boxes = targets.boxes[i][valid].numpy()
        masks = None
        if targets.masks is not None:
            grids = targets.masks.each(lambda value, i=i, valid=valid: value[i][valid])  # type: ignore[misc]
            masks = paste(grids.cells.float().numpy() / 255, grids.frames.numpy(), height, width)
        labelled = [names[c] for c in labels]
        drawn.append(draw_boxes(np.ascontiguousarray(pixels), boxes, labelled, class_ids=labels, masks=masks))
    save_picture(tile(drawn), path)


def save_predictions(folder: Path, dataset: Dataset, results: Results, *, conf: float = 0.5) -> None:
    """Ground truth beside detections above `conf`, for images spread evenly over the split; one file each."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, SHOWN).round().astype(int))
    (names,) = flat_names([select_images(dataset, chosen)])
    for index, name in zip(chosen.tolist(), names, strict=True):
        objects = dataset.objects(index)
        mine = (results.images == index) & (results.scores >= conf)
        detections = (results.boxes[mine].astype(np.float32), results.class_ids[mine], results.scores[mine])
        masks: tuple[Any, Any] = (None, None)
        if results.masks is not None:
            masks = (dataset.masks_of(index) or None, [results.masks[int(row)] for row in np.flatnonzero(mine)])
        truth = (objects.boxes, objects.labels)
        pair = draw_pair(dataset.image(index), truth, detections, dataset.names, masks=masks)
        save_picture(pair, folder / Path(name).with_suffix(".jpg"))
