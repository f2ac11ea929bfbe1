"""When a certificate passes."""

from pathlib import Path

import pytest

from twostage.parity.agreement import Agreement, Spread
from twostage.parity.certificate import Certificate, Party, Quality

NONE = Spread(0.0, 0.0)


def certificate(**changes: object) -> Certificate:
    """Of two sides with the same ten detections, but for changes of their agreement."""
    equal = Agreement(2, 10, 10, 10, 0, NONE, NONE, None, False, 0.0)._replace(**changes)
    return Certificate(Party(Path("a"), ""), Party(Path("b"), ""), [], {1: equal})


def test_an_exported_file_without_the_masks_of_its_model_fails() -> None:
    """A file of other weights may have none: boxes alone are compared then."""
    lacking = certificate(one_without_masks=True)
    assert lacking.passed
    assert not lacking._replace(explained_by=None).passed
    assert certificate()._replace(explained_by=None).passed


@pytest.mark.parametrize(
    ("before", "after", "found", "passes"),
    [(0.6, 0.597, 10, True), (0.6, 0.59, 10, False), (0.0, 0.0, 10, False), (-1, -1, 10, False), (0.6, 0.6, 0, False)],
)
def test_int8_passes_by_an_ap_that_was_there_and_detections_in_every_batch(
    before: float, after: float, found: int, passes: bool
) -> None:
    quality = Quality("data", 5, before, after, None, None, (), 0.5)
    assert certificate(found=found, matched=0)._replace(quality=quality).passed is passes
