"""One function of whole numbers for everything random."""

import numpy as np

from twostage.data.randomness import generator, mix


def test_first_values_are_those_of_splitmix64() -> None:
    # What the reference implementation (Vigna, splitmix64.c) gives for two seeds; mix drops the lowest bit.
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(1234567) == 6457827717110365317 >> 1


def test_order_sign_and_size_of_numbers_matter() -> None:
    values = [mix(1, 2), mix(2, 1), mix(1), mix(1, 0), mix(0, 1), mix(-1), mix(2**70 + 3), mix()]
    assert len(set(values)) == len(values)
    assert all(0 <= v < 2**63 for v in values)


def test_neighbouring_seeds_draw_unrelated_numbers() -> None:
    draws = np.array([generator(0, epoch, image).random() for epoch in range(50) for image in range(50)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05
    assert generator(1, 2).random() == generator(1, 2).random()
