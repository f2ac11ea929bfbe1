"""What a run reads beside images and objects: proposals from elsewhere, and stuff maps."""

from functools import partial

from twostage.data.loader import PrecomputedProposals
from twostage.data.proposals import read_proposals, require_distinct_splits
from twostage.data.stuff import Stuff, find_stuff
from twostage.errors import DataError
from twostage.models.config import DetectorConfig, TwoStageConfig
from twostage.models.proposals.provided import of_split
from twostage.progress import images_bar
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits
from twostage.training.step import Session

Given = tuple[PrecomputedProposals | None, PrecomputedProposals | None]
"""The proposals of the training and validation splits, where they are not the model's own."""


def given_proposals(options: TrainOptions, splits: Splits, config: DetectorConfig) -> Given:
    """Proposals of the training and of the validation split, from a file or computed; None where the model proposes."""
    if not {"head", "boxes"} & set(options.learn) or not isinstance(config, TwoStageConfig):
        return None, None
    read = None if options.proposals is None else partial(read_proposals, options.proposals)
    if options.proposals is not None and splits.val is not None:
        require_distinct_splits(options.proposals, splits.train, splits.val)
    given: list[PrecomputedProposals | None] = []
    for split, keep in ((splits.train, config.proposals.keep_train), (splits.val, config.proposals.keep_test)):
        if split is None:
            given.append(None)
            continue
        with images_bar(f"proposals, {split.split}", quiet=options.quiet) as after_image:
            given.append(of_split(split, config.proposals, read, count=keep, after_image=after_image))
    return given[0], given[1]


def stuff_maps(splits: Splits, session: Session) -> tuple[Stuff | None, Stuff | None]:
    """The stuff maps of both splits. Raises DataError where the semantic branch of a model needs them."""
    config = session.model.config
    semantic = config.semantic if isinstance(config, TwoStageConfig) else None
    if "head" not in session.options.learn or semantic is None or not semantic.has_branch:
        return None, None
    assert isinstance(semantic.classes, int)
    maps = [None if split is None else find_stuff(split) for split in (splits.train, splits.val)]
    for split, stuff in zip(splits, maps, strict=False):
        if split is not None and stuff is not None and stuff.classes > semantic.classes:
            raise DataError(
                f"{split.root}: the stuff maps have {stuff.classes} classes, the model "
                f"{semantic.classes}. Leave semantic_classes out to take their number from the data."
            )
        if split is not None and stuff is None:
            raise DataError(
                f"{split.root}: the split {split.split!r} has no maps of stuff, which this model's semantic branch "
                "learns. Bring them, or leave the branch out by --set model.semantic_classes=0."
            )
    return maps[0], maps[1]
