"""Randomness by name: a stream depends on what it is for and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import torch

from utils.seeds import generator, seed_everything, uniforms


def test_equal_keys_equal_streams() -> None:
    assert (generator(3, "a", 1).random(5) == generator(3, "a", 1).random(5)).all()
    firsts = {
        float(generator(*keys).random()) for keys in [(3, "a", 1), (4, "a", 1), (3, "a", 2), (3, "b", 1), (3, 1, "a")]
    }
    assert len(firsts) == 5


def test_keys_do_not_run_together() -> None:
    firsts = {
        float(generator(0, *keys).random()) for keys in [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), ("i1",)]
    }
    assert len(firsts) == 6


def test_a_known_value_pins_the_stream() -> None:
    """Philox and the key's hash are fixed for all time: a change here changes every published number."""
    assert generator(0, "pin").integers(0, 2**31, 3).tolist() == [1298926261, 2020636180, 1707087276]


def test_uniform_rows_do_not_depend_on_their_neighbours() -> None:
    full = uniforms(7, 2, ["x", "y", 5], samples=3, tokens=4)
    assert full.shape == (3, 3, 4) and full.dtype == np.float64
    assert (uniforms(7, 2, [5, "x"], 2, 4) == full[[2, 0], :2]).all()
    assert (uniforms(7, 2, ["x", "y", 5], 3, 9)[..., :4] == full).all()
    assert len(np.unique(full)) == 36 and (full >= 0).all() and (full < 1).all()
    assert not (uniforms(7, 3, ["x"], 3, 4) == full[0]).any()


def test_uniforms_are_uniform() -> None:
    values = uniforms(0, 0, list(range(50)), 8, 50).ravel()
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / values.size)
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    expected = values.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_seed_everything() -> None:
    drawn = []
    for _ in range(2):
        seed_everything(11)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
