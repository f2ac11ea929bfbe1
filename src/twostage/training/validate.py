"""How good the weights are now: losses and detections on the validation split, from one forward pass an image."""

from dataclasses import replace
from typing import Any

import torch

from twostage.data.dataset import Dataset
from twostage.data.loader import PrecomputedProposals, evaluation_batches
from twostage.data.stuff import Stuff
from twostage.distributed import ALONE, Processes
from twostage.evaluation.evaluate import Report, evaluate
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.predictor import finished, to_arrays
from twostage.inference.prepare import prepare
from twostage.models.fields import Fields
from twostage.models.two_stage import TwoStage


@torch.inference_mode()
def detect_and_lose(
    model: TwoStage,
    dataset: Dataset,
    output: Fields,
    *,
    batch: int,
    workers: int,
    processes: Processes = ALONE,
    proposals: PrecomputedProposals | None = None,
    stuff: Stuff | None = None,
) -> tuple[Results, dict[str, float]]:
    """Detections on a split and the mean losses of its batches; several processes share it, and the leader gets all.

    The losses are those of training but for dropout, batch statistics and the number of proposals, which are as in
    prediction; they draw the same samples every time. The model is prepared, in float32, as in `twostage eval`.
    """
    fields, device = model.fields, model.mean.device
    model.eval()
    found_here = Accumulator()
    summed: dict[str, float] = {}
    processes.copy_buffers(model)
    model = prepare(model)
    for loaded in evaluation_batches(
        dataset,
        resize=fields.resizing,
        batch=batch,
        workers=workers,
        divisor=fields.divisor,
        rank=processes.rank,
        world=processes.world,
        proposals=proposals,
        masks=model.knows_masks,
        stuff=stuff,
    ):
        inputs, targets = loaded.batch.to(device), loaded.targets.to(device)
        stages = model.stages(inputs, output)
        found = finished(model, stages, inputs.sizes, output)
        losses = model.losses(stages.maps, stages.dense, stages.proposals, inputs.sizes, targets)
        indices = loaded.indices.tolist()
        for name, value in losses.items():
            summed[name] = summed.get(name, 0.0) + float(value) * len(indices)
        originals = [(int(h), int(w)) for h, w in dataset.sizes[indices]]
        for index, one in zip(indices, to_arrays(found, loaded.batch.sizes, originals, output), strict=True):
            found_here.add(index, one["boxes"], one["scores"], one["class_ids"], one["masks"])
    shares = processes.collect((found_here, summed))
    names = dict.fromkeys(name for _, losses in shares for name in losses)  # a process may have had no image
    means = {name: sum(losses.get(name, 0.0) for _, losses in shares) / len(dataset) for name in names}
    return Accumulator.join(share for share, _ in shares).results(), means


def validate(
    model: TwoStage,
    dataset: Dataset,
    truth: Dataset,
    *,
    conf: float | None,
    iou: float | None,
    max_det: int | None,
    batch: int,
    workers: int,
    processes: Processes = ALONE,
    proposals: PrecomputedProposals | None = None,
    stuff: Stuff | None = None,
) -> tuple[Report | None, Results, dict[str, float]]:
    """The report of a split, its detections, and the mean losses; `truth` is the split with its boxes as written.

    Of several processes the leader gets them, the others none.
    """
    given: dict[str, Any] = {"score_threshold": conf, "nms": iou, "max_det": max_det}
    output = replace(model.fields, **{k: v for k, v in given.items() if v is not None})
    results, losses = detect_and_lose(
        model, dataset, output, batch=batch, workers=workers, processes=processes, proposals=proposals, stuff=stuff
    )
    report = evaluate(truth, results, score_floor=output.score_threshold) if processes.leads else None
    return report, results, losses
