"""The learning rate's factor at known steps."""

import pytest

from twostage.training.schedule import factor, steps_in


def test_warm_up_is_linear_and_ends_at_one() -> None:
    values = [factor(step, 100, kind="cosine", warmup=4, start=0.0) for step in range(4)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_starts_at_one_is_half_in_the_middle_and_ends_near_zero() -> None:
    values = [factor(step, 110, kind="cosine", warmup=10) for step in (10, 60, 109)]
    assert values[:2] == pytest.approx([1.0, 0.5])
    assert 0 < values[2] < 1e-3


def test_multistep_divides_by_ten_at_each_milestone() -> None:
    # Detectron's 1x: 90 thousand steps, divided after 60 and 80 thousand.
    values = [
        factor(step, 90_000, kind="multistep", warmup=0, milestones=(6 / 9, 8 / 9)) for step in (59_999, 60_000, 80_000)
    ]
    assert values == pytest.approx([1.0, 0.1, 0.01])


def test_rate_is_full_while_the_length_of_the_run_is_unknown() -> None:
    assert factor(50, None, kind="cosine", warmup=10) == 1.0


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 20), (0.4, 0), (-3.0, 0)])
def test_steps_that_fit(seconds: float, steps: int) -> None:
    assert steps_in(seconds, [0.25, 0.75]) == steps
