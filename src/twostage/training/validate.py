"""Validation: losses and detections on the validation split, from one forward pass per image."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded, PrecomputedProposals
from twostage.data.stuff import Stuff
from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.evaluation.evaluate import Report, evaluate
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.dataset import batches_of, detect_split
from twostage.inference.prepare import prepare
from twostage.models.build import Model
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.two_stage import PARTS


def detect_with_losses(
    model: Model,
    dataset: Dataset,
    postprocess: PostprocessConfig,
    *,
    batch: int,
    workers: int,
    parts: Collection[str] = PARTS,
    processes: Processes = SINGLE_PROCESS,
    proposals: PrecomputedProposals | None = None,
    stuff: Stuff | None = None,
) -> tuple[Results, dict[str, float]]:
    """Detections on a split and the mean losses of its batches; of several processes the main one gets all.

    The losses are those of training except for dropout, batch statistics and the number of proposals, which are as in
    prediction; they draw the same samples every time. The model is prepared, in float32, as in `twostage eval`.
    """
    model.eval()
    summed: dict[str, float] = {}
    processes.broadcast_buffers(model)
    fast = prepare(model)

    def detect(loaded: Loaded) -> BatchDetections:
        inputs, targets = loaded.batch.to(fast.device), loaded.targets.to(fast.device)
        stages = fast.stages(inputs, postprocess)
        for name, value in fast.losses(stages, inputs.sizes, targets, parts=parts).items():
            summed[name] = summed.get(name, 0.0) + float(value) * len(loaded.indices)
        return fast.finish(stages, inputs.sizes, postprocess)

    batches = batches_of(
        fast,
        dataset,
        batch=batch,
        workers=workers,
        processes=processes,
        proposals=proposals,
        masks=model.has_masks and "head" in parts,
        stuff=stuff,
    )
    shares = processes.gather_to_main((detect_split(fast, dataset, batches, detect), summed))
    names = dict.fromkeys(name for _, losses in shares for name in losses)  # a process may have had no image
    means = {name: sum(losses.get(name, 0.0) for _, losses in shares) / len(dataset) for name in names}
    return Accumulator.join(share for share, _ in shares).results(), means


def validate(
    model: Model,
    dataset: Dataset,
    truth: Dataset,
    *,
    conf: float | None,
    iou: float | None,
    max_det: int | None,
    batch: int,
    workers: int,
    parts: Collection[str] = PARTS,
    processes: Processes = SINGLE_PROCESS,
    proposals: PrecomputedProposals | None = None,
    stuff: Stuff | None = None,
) -> tuple[Report | None, Results, dict[str, float]]:
    """The report of a split, its detections, and the mean losses; `truth` is the split with its boxes as written.

    Of several processes the main one gets them, the others none.
    """
    given: dict[str, Any] = {"score_threshold": conf, "nms": iou, "max_det": max_det}
    postprocess = replace(model.config.postprocess, **{k: v for k, v in given.items() if v is not None})
    results, losses = detect_with_losses(
        model,
        dataset,
        postprocess,
        batch=batch,
        workers=workers,
        parts=parts,
        processes=processes,
        proposals=proposals,
        stuff=stuff,
    )
    report = evaluate(truth, results, score_floor=postprocess.score_threshold) if processes.is_main else None
    return report, results, losses
