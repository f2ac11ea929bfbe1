"""Randomness as a function of integers: a seed, epoch and image give the same draw on any worker, rank or resume."""

import numpy as np

_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """A hash of these integers and their order, from 0 to 2**63 - 1.

    Each is added to the state and scrambled by the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable
    pseudorandom number generators, OOPSLA 2014).
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(*numbers: int) -> np.random.Generator:
    """numpy's generator, seeded with `mix(*numbers)`."""
    return np.random.default_rng(mix(*numbers))
