import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twostage.models.targets.matching import IGNORE, NEGATIVE
from twostage.models.targets.sampling import RandomSampler, Sample, uniform


def matches_with(positives: int, negatives: int, ignored: int, seed: int = 0) -> Tensor:
    """So many of each, in random order; positives are matched to ground truth 0, 1, 2 ..."""
    kinds = torch.cat([torch.arange(positives), torch.full((negatives,), NEGATIVE), torch.full((ignored,), IGNORE)])
    return kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))]


def draw(sampler: RandomSampler, matches: Tensor, *seeds: int) -> Sample:
    return sampler(matches if matches.ndim == 2 else matches.expand(len(seeds), -1), torch.tensor(seeds))


@given(
    positives=st.integers(0, 40),
    negatives=st.integers(0, 40),
    ignored=st.integers(0, 10),
    count=st.integers(1, 48),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 2**62),
)
def test_counts(positives: int, negatives: int, ignored: int, count: int, fraction: float, seed: int) -> None:
    """As torchvision's sampler counts: positives up to their share, negatives fill up, each box at most once."""
    matches = matches_with(positives, negatives, ignored)
    if not len(matches):
        return
    sample = draw(RandomSampler(count, fraction), matches, seed)
    assert sample.index.shape == sample.positive.shape == sample.valid.shape == (1, min(count, len(matches)))
    taken = sample.index[sample.valid]
    expected_positives = min(positives, int(count * fraction))
    assert int(sample.positive.sum()) == expected_positives
    assert len(taken) == min(expected_positives + negatives, count)
    assert len(taken.unique()) == len(taken)
    assert (matches[sample.index[sample.positive]] >= 0).all()
    assert (matches[sample.index[sample.valid & ~sample.positive]] == NEGATIVE).all()
    assert not (sample.positive & ~sample.valid).any()


def test_positives_stand_first_and_padding_last() -> None:
    sample = draw(RandomSampler(32, 0.5), matches_with(5, 6, 30), 3)
    assert sample.positive[0].tolist() == [True] * 5 + [False] * 27
    assert sample.valid[0].tolist() == [True] * 11 + [False] * 21


def test_nothing_to_sample() -> None:
    sample = draw(RandomSampler(8, 0.5), matches_with(0, 0, 20), 3)
    assert not sample.valid.any()
    assert not sample.positive.any()


def test_the_same_seed_draws_the_same_whatever_the_place_in_the_batch() -> None:
    matches = torch.stack([matches_with(20, 100, 10, seed=i) for i in range(4)])
    sampler = RandomSampler(32, 0.5)
    seeds = torch.tensor([5, 2**40 + 1, 5, 2**62])
    together = sampler(matches, seeds)
    order = [2, 0, 3, 1]
    turned = sampler(matches[order], seeds[order])
    for name in Sample._fields:
        assert torch.equal(getattr(together, name)[order], getattr(turned, name))
    alone = sampler(matches[3:], seeds[3:])
    assert torch.equal(alone.index[0], together.index[3])


def test_no_generator_state_is_read_or_moved() -> None:
    matches, sampler = matches_with(20, 100, 10), RandomSampler(32, 0.5)
    torch.manual_seed(1)
    first, state = draw(sampler, matches, 7), torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(1).get_state())
    torch.manual_seed(2)
    assert torch.equal(first.index, draw(sampler, matches, 7).index)


def test_other_seeds_draw_otherwise() -> None:
    """Neighbouring seeds, seeds that differ in the high half alone, and a seed and its complement."""
    seeds = (0, 1, 2, 2**32, 2**33, 2**62, -1, -2, ~(2**40))
    sample = draw(RandomSampler(32, 0.5), matches_with(50, 500, 10), *seeds)
    assert len({tuple(row.sort().values.tolist()) for row in sample.index}) == len(seeds)


def test_draws_are_uniform() -> None:
    """Each of 200 negatives is taken as often as any other: chi squared over 2000 draws of 50."""
    sample = draw(RandomSampler(50, 0.5), torch.full((200,), NEGATIVE), *range(2000))
    counts = torch.bincount(sample.index.flatten(), minlength=200).double()
    expected = 2000 * 50 / 200
    # Without replacement the variance is smaller by 1 - 50/200, so that 199 degrees of freedom give about 149 +- 15.
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert 149 - 5 * 15 < chi < 149 + 5 * 15


def test_anchors_and_regions_of_one_seed_draw_independently() -> None:
    """`region_targets` complements the seed; with the same bits a box would be sampled in both or in neither."""
    seeds = torch.arange(200)
    a, b = uniform(seeds, 100).flatten(), uniform(~seeds, 100).flatten()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / len(a) ** 0.5


def test_uniform_numbers_are_uniform_over_seeds_and_positions() -> None:
    values = uniform(torch.arange(500), 400)
    assert values.min() >= 0
    assert values.max() < 1
    for axis in (0, 1):
        means = values.mean(dim=axis)
        assert means.sub(0.5).abs().max() < 5.5 * (1 / 12 / values.shape[axis]) ** 0.5
    counts = torch.histc(values, 64, 0, 1)
    assert counts.sub(values.numel() / 64).abs().max() < 5 * (values.numel() / 64) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 123456789, 2**62])
def test_neighbouring_positions_are_independent(seed: int) -> None:
    values = uniform(torch.tensor([seed]), 100_000)[0]
    for lag in (1, 2, 9):
        pair = torch.stack([values[:-lag], values[lag:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / values.numel() ** 0.5
