"""Faster R-CNN's four-step alternating training (Ren et al. 2015, section 3.2).

1. The RPN is trained, from the pretrained net.
2. Fast R-CNN is trained on step 1's proposals, from the pretrained net again: nothing is shared yet.
3. The RPN is trained again on step 2's convolutions, which stay fixed.
4. Fast R-CNN's own layers are trained on step 3's proposals, the convolutions stay fixed: both nets share them.

Each step is a training run in a folder of its own, and can be resumed. Further rounds begin from the result of the
round before instead of the pretrained net.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from twostage.atomic import write_bytes
from twostage.data.proposals import merge_proposals, write_proposals
from twostage.data.workers import default_workers
from twostage.distributed import Processes, process_group
from twostage.errors import UsageError
from twostage.inference.dataset import propose_split
from twostage.inference.prepare import prepare
from twostage.models.build import build
from twostage.models.config import TwoStageConfig
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.progress import images_bar
from twostage.shell import command
from twostage.training.folder import RunFolder, claimed_root, naming_resume, read_options, resumed_options
from twostage.training.options import OF_VALIDATION, TrainOptions
from twostage.training.recipe import recipe_name
from twostage.training.splits import NONE, Splits, open_splits
from twostage.training.start import require_start, with_default_weights
from twostage.training.subruns import begin_or_resume, keep_result, result_of
from twostage.weights.file import load_weights
from twostage.weights.fit import Unfilled, load_all

log = logging.getLogger("twostage.training")


@dataclass(frozen=True)
class Step:
    """One of the four: its folder, what is trained, and the earlier steps that its weights and proposals come from.

    `begins` None is the pretrained net, `proposals` None the step's own RPN.
    """

    name: str
    about: str
    learn: tuple[str, ...]
    begins: str | None
    proposals: str | None


def steps(rounds: int) -> Iterator[Step]:
    """The steps of so many rounds, in order."""
    before = None
    for number in range(1, rounds + 1):
        names = [f"{'' if number == 1 else f'round-{number}-'}step-{k}" for k in (1, 2, 3, 4)]
        one, two, three, four = names
        yield Step(one, "the RPN, from the initial net", ("backbone", "rpn"), before, None)
        yield Step(
            two, f"Fast R-CNN on the proposals of {one}, from the initial net", ("backbone", "head"), before, one
        )
        yield Step(three, f"the RPN on the convolutions of {two}", ("rpn",), two, None)
        yield Step(four, f"Fast R-CNN's own layers on the proposals of {three}", ("head",), three, three)
        before = four


class Training(NamedTuple):
    """The whole training: its options, its folder, its processes, and what a Python caller gave in memory."""

    options: TrainOptions
    root: Path
    processes: Processes
    splits: Splits | None
    backbone: nn.Module | None


def alternate(
    options: TrainOptions, *, splits: Splits | None = None, backbone: nn.Module | None = None
) -> dict[str, Any]:
    """All steps that are not done yet; the last one's weights are the folder's. See `twostage.training.train`.

    Raises UsageError for options that contradict the scheme.
    """
    with process_group() as processes, ExitStack() as held:
        with processes.sync_errors():
            if options.resume is None:
                _require_alternating(options)
                options = with_default_weights(options, backbone)
                require_start(options)
            else:
                options = replace(resumed_options(options, options.resume), out=options.resume)
        root = processes.on_main(lambda: claimed_root(options, held))
        held.enter_context(naming_resume(command("twostage", "train", "--resume", root)))
        return _all_steps(Training(replace(options, resume=None), root, processes, splits, backbone))


def _all_steps(training: Training) -> dict[str, Any]:
    root, results = training.root, []
    for step in steps(training.options.rounds):
        log.info("%s: %s", step.name, step.about)
        results.append(result_of(root / step.name) or _train(step, training))
        _finish(training, step, results[-1])
    best = root / "weights" / "best.safetensors"
    training.processes.on_main(lambda: write_bytes(best, _weights(root / step.name).read_bytes()))
    return results[-1] | {
        "out": str(root),
        "weights": str(best),
        **{name: sum(result[name] for result in results) for name in ("epochs", "steps")},
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }


def _require_alternating(options: TrainOptions) -> None:
    if set(options.learn) != {"backbone", "rpn", "head"} or options.proposals is not None:
        raise UsageError(
            "scheme is alternating, whose steps fix the trained parts and proposals: leave out --learn and --proposals"
        )
    config = configure(named(options.model), options.given_fields)
    if not isinstance(config, TwoStageConfig) or config.rpn is None:
        raise UsageError(
            f"scheme is alternating, by turns network and head: {options.model} lacks one, choose a faster_rcnn_*"
        )


def _train(step: Step, training: Training) -> dict[str, Any]:
    options, root, processes, splits, backbone = training
    proposals = _proposals(root, step.proposals) if step.proposals else None
    if splits is not None and "head" not in step.learn:
        splits = Splits(splits.train, None, None)
    # An RPN alone has no detections, and so no metric to choose weights by.
    without: dict[str, Any] = {} if "head" in step.learn else {"val_split": NONE, **OF_VALIDATION}
    if "backbone" not in step.learn:
        without["freeze"] = None
    own = replace(
        options,
        scheme="joint",
        rounds=1,
        recipe=recipe_name(options),  # one for all steps, of which only the first may begin from random weights
        minutes=options.minutes and options.minutes / (4 * options.rounds),
        learn=step.learn,
        weights=options.weights if step.begins is None else str(_weights(root / step.begins)),
        # The labels may have been mended since, and another size be chosen for them.
        size=options.size if step.proposals is None else read_options(root / step.proposals).size,
        proposals=proposals,
        **without,
    )
    return begin_or_resume(own, root / step.name, processes, splits, backbone, root=root)


def _finish(training: Training, step: Step, result: dict[str, Any]) -> None:
    """The proposals that later steps need of this one, and then the mark that it is done."""
    root, processes = training.root, training.processes
    if "rpn" in step.learn and not processes.on_main(_proposals(root, step.name).exists):
        _propose(training, step)
    keep_result(root / step.name, result, processes)


def _propose(training: Training, step: Step) -> None:
    """Write the proposals of a step's RPN: as many as in training for one split, as at test for the other.

    Several processes share the images.
    """
    options, root, processes = training.options, training.root, training.processes
    card, state = load_weights(_weights(root / step.name))
    config = card.config
    assert isinstance(config, TwoStageConfig)
    assert config.rpn is not None
    with Unfilled():
        model = build(config, len(card.names), training.backbone)
    load_all(model, state, step.name)
    device = processes.device(options.device)
    fast = prepare(model.to(device))
    rpn, proposals = config.rpn, config.proposals
    splits = training.splits or open_splits(options)
    out = []
    for split, top, keep in (
        (splits.train, rpn.top_train, proposals.keep_train),
        (splits.val, rpn.top_test, proposals.keep_test),
    ):
        if split is None:
            continue
        workers = default_workers(on_cpu=device.type == "cpu") if options.workers is None else options.workers
        with images_bar(f"proposals, {split.split}", quiet=options.quiet) as after_image:
            own = propose_split(
                fast, split, workers=workers, processes=processes, top=top, keep=keep, after_image=after_image
            )
        shares = processes.gather_to_main(own)
        if processes.is_main:
            out.append((split, merge_proposals(shares)))
    most = max(proposals.keep_train, proposals.keep_test)
    processes.on_main(lambda: write_proposals(_proposals(root, step.name), out, most))


def _weights(folder: Path) -> Path:
    """The best weights of a step, or the last ones where it was not validated."""
    run = RunFolder(folder)
    return run.best if run.best.exists() else run.last


def _proposals(root: Path, step: str) -> Path:
    return root / "proposals" / f"{step}.safetensors"
