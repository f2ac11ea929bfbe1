"""Validation: losses and detections on the validation split, from one forward pass per image."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from twostage.data.loader import Loaded, PrecomputedProposals
from twostage.data.stuff import Stuff
from twostage.evaluation.evaluate import Report, evaluate
from twostage.evaluation.results import Accumulator, Results
from twostage.inference.dataset import batches_of, detect_split
from twostage.inference.prepare import prepare
from twostage.models.config import OneStageConfig
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.zoo import named
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits
from twostage.training.step import Session


class Validation(NamedTuple):
    """Metrics and mean losses, in all processes; the report and the detections, in the main one alone."""

    metrics: dict[str, float]
    losses: dict[str, float]
    report: Report | None
    results: Results


def quality(metrics: Mapping[str, float]) -> float:
    """What weights are chosen by: the boxes' AP, or the mean of the boxes' and the masks'; below 0 without objects."""
    return (metrics["AP"] + metrics.get("segm_AP", metrics["AP"])) / 2


def chosen_by_quality(options: TrainOptions) -> bool:
    """Whether the part that predicts classes is trained: otherwise AP chooses nothing."""
    one_stage = isinstance(named(options.model), OneStageConfig)
    return bool({"head", "boxes", *(("rpn",) if one_stage else ())} & set(options.learn))


def validate(
    session: Session, splits: Splits, *, workers: int, proposals: PrecomputedProposals | None, stuff: Stuff | None
) -> Validation:
    """Score the weights that are kept on the validation split, whose `truth` are its boxes as written.

    The losses are those of training except for dropout, batch statistics and the number of proposals, which are as in
    prediction; they draw the same samples every time. The model is prepared, in float32, as in `twostage eval`.
    """
    assert splits.val is not None
    assert splits.truth is not None
    options, processes, model = session.options, session.processes, session.evaluated
    given: dict[str, Any] = {"score_threshold": options.conf, "nms": options.iou, "max_det": options.max_det}
    postprocess = replace(model.config.postprocess, **{k: v for k, v in given.items() if v is not None})
    summed: dict[str, float] = {}
    model.eval()
    processes.broadcast_buffers(model)
    fast = prepare(model)

    def detect(loaded: Loaded) -> BatchDetections:
        inputs, targets = loaded.batch.to(fast.device), loaded.targets.to(fast.device)
        stages = fast.stages(inputs, postprocess)
        for name, value in fast.losses(stages, inputs.sizes, targets, parts=options.learn).items():
            summed[name] = summed.get(name, 0.0) + float(value) * len(loaded.indices)
        return fast.finish(stages, inputs.sizes, postprocess)

    batches = batches_of(
        fast,
        splits.val,
        batch=session.recipe.batch,
        workers=workers,
        processes=processes,
        proposals=proposals,
        masks=session.learns_masks,
        stuff=stuff,
    )
    shares = processes.gather_to_main((detect_split(fast, splits.val, batches, detect), summed))
    names = dict.fromkeys(name for _, losses in shares for name in losses)  # a process may have had no image
    means = {name: sum(losses.get(name, 0.0) for _, losses in shares) / len(splits.val) for name in names}
    results = Accumulator.join(share for share, _ in shares).results()
    report = None
    if processes.is_main:
        report = evaluate(splits.truth, results, score_floor=postprocess.score_threshold, precision="fp32")
    return Validation(*processes.broadcast((report.metrics if report else {}, means)), report, results)
