"""The label audit: a ranked list of labels that may be wrong, and of objects that may lack one.

    dataset ── detectors that have not learned these labels ──> evidence ── a rule per kind ──> suggestions

Two stages, two views and, in a cascade, several stages judge every label; where labels are right they agree. Without
cross-fitting (`training.cross_fitting`) a network judges what it was trained on, and agrees with faults it has learned.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from twostage.data.dataset import Dataset
from twostage.errors import UsageError
from twostage.inference.runner import Runner
from twostage.inspection.evidence import data_evidence, two_stage_runner
from twostage.inspection.label_faults import find_faults
from twostage.inspection.suggestion import Kind, Suggestion, ranked

LIKELY = 0.5  # value from which on a suggestion is counted as likely


class Judge(NamedTuple):
    """A detector, and the images of a data set whose labels it judges, by their indices."""

    runner: Runner
    images: Sequence[int]


@dataclass(frozen=True, eq=False)
class Audit:
    """The suggestions of all kinds, kind by kind, the most likely fault first."""

    dataset: Dataset
    suggestions: tuple[Suggestion, ...]

    def of(self, kind: Kind) -> list[Suggestion]:
        """Those of a kind."""
        return [one for one in self.suggestions if one.kind == kind]

    def first(self, most: int) -> list[Suggestion]:
        """At most so many of each kind."""
        return [one for kind in Kind for one in self.of(kind)[:most]]

    def counts(self) -> dict[Kind, tuple[int, int]]:
        """By kind the number of suggestions, and of those with a value of at least 0.5."""
        every = Counter(one.kind for one in self.suggestions)
        likely = Counter(one.kind for one in self.suggestions if one.value >= LIKELY)
        return {kind: (every[kind], likely[kind]) for kind in Kind}

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """A dictionary {"images", "objects", "counts", "suggestions"}; at most so many suggestions of each kind."""
        some = self.suggestions if most is None else self.first(most)
        return {
            "images": len(self.dataset),
            "objects": len(self.dataset.labels),
            "counts": {
                str(kind): {"suggestions": every, "likely": likely} for kind, (every, likely) in self.counts().items()
            },
            "suggestions": [one.to_dict(self.dataset) for one in some],
        }


def audit(
    dataset: Dataset, judges: Iterable[Judge], after_image: Callable[[int, int], None] = lambda done, all: None
) -> Audit:
    """The audit of a data set's labels by one detector, or by several that judge a part of the images each.

    `after_image` is called with the number of images that are done and that of all. Raises UsageError for a detector
    of one stage, for an exported file, and for another number of classes.
    """
    done = 0
    found: list[Suggestion] = []

    def count_image() -> None:
        nonlocal done
        done += 1
        after_image(done, len(dataset))

    for judge in judges:
        runner = two_stage_runner(judge.runner)
        if runner.model.num_classes != len(dataset.names):
            raise UsageError(
                f"{dataset.root}: has {len(dataset.names)} classes, and the detector {runner.model.num_classes}: audit "
                "with a detector of the same classes."
            )
        # Each by itself: what is usual, such as the spread of its boxes, differs between networks.
        found += find_faults(dataset, data_evidence(runner, dataset, judge.images, count_image))
    return Audit(dataset, tuple(one for kind in Kind for one in ranked(found, kind)))
