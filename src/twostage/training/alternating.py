"""Faster R-CNN's four-step alternating training (Ren et al. 2015, section 3.2).

1. The proposal network learns, from the pretrained net.
2. Fast R-CNN learns on step 1's proposals, from the pretrained net again: nothing is shared yet.
3. The proposal network learns anew on step 2's convolutions, which stay as they are.
4. Fast R-CNN's own layers learn on step 3's proposals; the convolutions stay. Now both nets share them.

Each step is a training run in a folder of its own, and goes on where it was stopped. Further rounds begin from what the
round before has made, in place of the pretrained net.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twostage.atomic import write_bytes, write_text
from twostage.data.proposals import merge_proposals, write_proposals
from twostage.data.workers import default_workers
from twostage.distributed import Processes, joined
from twostage.errors import UsageError
from twostage.folders import claimed
from twostage.inference.prepare import prepare
from twostage.inference.proposing import network_proposals
from twostage.models.zoo import build, rebuild
from twostage.progress import images_bar
from twostage.training.folder import RunFolder
from twostage.training.options import TrainOptions
from twostage.training.resume import resumed
from twostage.training.run import run
from twostage.training.splits import NONE, open_splits
from twostage.training.start import require_start
from twostage.weights.file import load_weights
from twostage.weights.fit import Unfilled, load_all

log = logging.getLogger("twostage.training")

RESULT = "result.json"  # of a step that is done


@dataclass(frozen=True)
class Step:
    """One of the four: its folder's name, what learns, and the earlier steps it begins from and takes proposals of.

    `begins` None is the pretrained net, `proposals` None the step's own network.
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
        yield Step(one, "the proposal network, from the net given", ("backbone", "rpn"), before, None)
        yield Step(two, f"Fast R-CNN on the proposals of {one}, from the net given", ("backbone", "head"), before, one)
        yield Step(three, f"the proposal network on the convolutions of {two}", ("rpn",), two, None)
        yield Step(four, f"Fast R-CNN's own layers on the proposals of {three}", ("head",), three, three)
        before = four


def alternate(options: TrainOptions) -> dict[str, Any]:
    """All steps that are not done yet; the last one's weights are the folder's. See `twostage.training.train`.

    Raises UsageError for options that contradict the scheme.
    """
    with joined() as processes, ExitStack() as held:
        with processes.one_voice():
            if options.resume is None:
                _require_alternating(options)
                require_start(options)
            else:
                options = replace(resumed(options, options.resume), out=options.resume)
        root = processes.led(lambda: _claimed_root(options, held))
        options = replace(options, resume=None)
        return _all_steps(options, root)


def _all_steps(options: TrainOptions, root: Path) -> dict[str, Any]:
    results = []
    for step in steps(options.rounds):
        log.info("%s: %s", step.name, step.about)
        try:
            results.append(_done(root / step.name) or _train(step, options, root))
        except KeyboardInterrupt:
            log.warning("The whole training goes on with: twostage train --resume %s", root)
            raise
        with joined() as processes:
            _finish(options, root, step, results[-1], processes)
    last = results[-1]
    best = root / "weights" / "best.safetensors"
    with joined() as processes:
        processes.led(lambda: write_bytes(best, _weights(root / step.name).read_bytes()))
    return last | {
        "out": str(root),
        "weights": str(best),
        **{name: sum(result[name] for result in results) for name in ("epochs", "steps")},
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }


def _require_alternating(options: TrainOptions) -> None:
    if set(options.learn) != {"backbone", "rpn", "head"} or options.proposals is not None:
        raise UsageError("scheme is alternating, which says itself what learns on which proposals: leave those out")
    with Unfilled():
        of_classes = {name: value for name, value in options.model_fields.items() if name != "class_weights"}
        model = build(options.model, 1, **of_classes)
    if model.rpn is None or not model.second.has_losses:
        raise UsageError(
            f"scheme is alternating, by turns network and head: {options.model} lacks one, choose a faster_rcnn_*"
        )


def _claimed_root(options: TrainOptions, held: ExitStack) -> Path:
    """The folder of all steps, kept to this process, with what the whole training was told."""
    folder = RunFolder.create(options) if options.resume is None else RunFolder(options.resume)
    held.enter_context(claimed(folder.state.parent))
    if options.resume is None:
        folder.begin(options)
    return folder.path


def _train(step: Step, options: TrainOptions, root: Path) -> dict[str, Any]:
    folder = root / step.name
    proposals = _proposals(root, step.proposals) if step.proposals else None
    if RunFolder(folder).state.exists():
        # Where it computes and where its data lie may be said anew.
        return run(
            TrainOptions(
                options.data,
                resume=folder,
                images=options.images,
                proposals=proposals,
                device=options.device,
                workers=options.workers,
                offline=options.offline,
                quiet=options.quiet,
            )
        )
    with joined() as processes:
        processes.led(lambda: shutil.rmtree(folder, ignore_errors=True))  # it stopped before there was anything in it
    return run(
        replace(
            options,
            scheme="joint",
            rounds=1,
            out=folder,
            minutes=options.minutes and options.minutes / (4 * options.rounds),
            learn=step.learn,
            weights=options.weights if step.begins is None else str(_weights(root / step.begins)),
            proposals=proposals,
            # Without both a detector says nothing: there is no number to choose weights by.
            val_split=options.val_split if "head" in step.learn else NONE,
        )
    )


def _finish(options: TrainOptions, root: Path, step: Step, result: dict[str, Any], processes: Processes) -> None:
    """What the later steps need of this one, and then the mark that it is done."""
    if "rpn" in step.learn and not processes.led(_proposals(root, step.name).exists):
        _propose(options, root, step, processes)
    processes.led(lambda: write_text(root / step.name / RESULT, json.dumps(result)))


def _propose(options: TrainOptions, root: Path, step: Step, processes: Processes) -> None:
    """Write the proposals of a step's network: as many as training takes of one split, as at test of the other.

    Several processes share the images.
    """
    card, state = load_weights(_weights(root / step.name))
    with Unfilled():
        model = rebuild(card.model, len(card.names), card.fields)
    load_all(model, state, step.name)
    device = processes.device(options.device)
    fields = model.fields
    splits = open_splits(options)
    found = []
    for split, top, keep in (
        (splits.train, fields.rpn_top_train, fields.rpn_keep_train),
        (splits.val, fields.rpn_top_test, fields.rpn_keep_test),
    ):
        if split is None:
            continue
        fast = prepare(model.to(device))
        assert fast.rpn is not None
        fast.rpn.fields = replace(fields, rpn_top_test=top, rpn_keep_test=keep)
        workers = default_workers(on_cpu=device.type == "cpu") if options.workers is None else options.workers
        with images_bar(f"proposals, {split.split}", quiet=options.quiet) as after_image:
            own = network_proposals(
                fast, split, workers=workers, after_image=after_image, rank=processes.rank, world=processes.world
            )
        shares = processes.collect(own)
        if processes.leads:
            found.append((split, merge_proposals(shares)))
    most = max(fields.rpn_keep_train, fields.rpn_keep_test)
    processes.led(lambda: write_proposals(_proposals(root, step.name), found, most))


def _weights(folder: Path) -> Path:
    """The best weights of a step, or the last ones where it was not validated."""
    run = RunFolder(folder)
    return run.best if run.best.exists() else run.last


def _proposals(root: Path, step: str) -> Path:
    return root / "proposals" / f"{step}.safetensors"


def _done(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
