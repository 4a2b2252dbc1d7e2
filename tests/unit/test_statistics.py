"""Statistics against numbers worked by hand, and coverage against simulated truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evaluation.statistics import (
    discordant,
    holm,
    iqm,
    mcnemar_exact,
    paired_difference,
    pass_at_k,
    rate_ci95,
)


def test_interval_of_a_rate_is_the_binomial_one() -> None:
    """50 of 100: the bootstrap mean is Binomial(100, 1/2) / 100, whose 2.5 % and 97.5 % points are 0.40 and 0.60."""
    values = [1.0] * 50 + [0.0] * 50
    assert rate_ci95(values, seed=0) == (0.40, 0.60)
    assert rate_ci95(values[::-1], seed=0) == rate_ci95(values, seed=0)  # order means nothing


def test_interval_of_real_values_has_the_normal_width() -> None:
    """Mean of 400 values with standard deviation 2: half width about 1.96 * 2 / 20 = 0.196."""
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = rate_ci95(values, seed=3)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)


def test_none_or_all_right_still_has_a_width() -> None:
    """0 of 10: 1 - 0.025^(1/10) = 0.30850, the exact bound; constants that are no rate have none."""
    assert rate_ci95([0.0] * 10, seed=0) == (0.0, pytest.approx(0.308497, abs=1e-6))
    assert rate_ci95([1.0] * 10, seed=0) == (pytest.approx(0.691503, abs=1e-6), 1.0)
    assert rate_ci95([0.5, 0.5], seed=0) == (0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.05, 1.0]), min_size=1, max_size=30), st.integers(0, 2**31))
def test_interval_contains_the_mean(values: list[float], seed: int) -> None:
    low, high = rate_ci95(values, seed, draws=50)
    assert low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_interval_covers_the_truth(rate: float) -> None:
    """Of 600 simulated studies with 300 records, 92-98 % of the intervals must hold the true rate."""
    rng = np.random.default_rng(7)
    studies = rng.random((600, 300)) < rate
    intervals = [rate_ci95(study, seed=index, draws=1000) for index, study in enumerate(studies)]
    covered = np.mean([low <= rate <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98


def test_paired_interval_covers_the_truth() -> None:
    """Two methods that share easy and hard records: a is right on 12 % that b misses, b on 5 %; truth is 0.07."""
    rng = np.random.default_rng(8)
    kinds = rng.choice([1.0, -1.0, 0.0], p=[0.12, 0.05, 0.83], size=(600, 300))
    hits = 0
    for index, difference in enumerate(kinds):
        _, low, high = paired_difference(difference, np.zeros(300), seed=index, draws=1000)
        hits += low <= 0.07 <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_interval_over_seeds_covers_what_records_alone_do_not() -> None:
    """True gain 0.05, seeds scatter with 0.03: eight seeds, and the interval must know that they scatter."""
    rng = np.random.default_rng(9)
    both = records_only = 0
    for index in range(300):
        gain = 0.05 + rng.normal(0, 0.03, size=8)
        difference = (rng.random((8, 400)) < 0.3 + gain[:, None]).astype(float) - (rng.random((8, 400)) < 0.3)
        _, low, high = paired_difference(difference, np.zeros((8, 400)), seed=index, draws=500)
        both += low <= 0.05 <= high
        narrow_low, narrow_high = rate_ci95(difference.mean(axis=0), seed=index, draws=500)
        records_only += narrow_low <= 0.05 <= narrow_high
    assert both / 300 >= 0.93
    assert records_only / 300 < 0.88


def test_paired_difference_by_hand() -> None:
    """a right on 3 of 4, b on 1 of 4: mean 0.5; equal answers leave no width; the sign turns with the order."""
    a, b = [1, 1, 1, 0], [1, 0, 0, 0]
    mean, low, high = paired_difference(a, b, seed=0)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert paired_difference(a, a, seed=0) == (0.0, 0.0, 0.0)
    assert paired_difference(b, a, seed=0)[0] == -0.5
    assert paired_difference([a, a], [b, b], seed=0)[0] == 0.5


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    """900 records that both know or both miss, and 100 where only a is right: the pairing removes the shared part."""
    a = np.array([1] * 500 + [0] * 400 + [1] * 100)
    b = np.array([1] * 500 + [0] * 400 + [0] * 100)
    _, low, high = paired_difference(a, b, seed=0)
    assert 0.08 <= low <= 0.09 and 0.11 <= high <= 0.12  # 0.1 +- 1.96 * sqrt(0.1 * 0.9 / 1000)


def test_mcnemar_by_hand() -> None:
    """5 against 1 discordant: 2 * (1 + 6) / 2^6 = 0.21875. None discordant: 1. 10 against 0: 2 / 2^10."""
    assert mcnemar_exact([1] * 5 + [0] + [1, 0], [0] * 5 + [1] + [1, 0]) == pytest.approx(0.21875)
    assert discordant([1] * 5 + [0] + [1, 0], [0] * 5 + [1] + [1, 0]) == (5, 1)
    assert mcnemar_exact([1, 0], [1, 0]) == 1.0
    assert mcnemar_exact([1] * 10, [0] * 10) == pytest.approx(2 / 1024)


def test_mcnemar_over_runs_is_the_sign_flip_test() -> None:
    """Sums over two runs 2, 2, 1: all 8 signs enumerated; and a run beside one with no difference changes nothing."""
    a, b = [[1, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]
    flips = [
        abs(sum(s * x for s, x in zip(signs, (2, 2, 1), strict=True))) for signs in itertools.product((-1, 1), repeat=3)
    ]
    assert mcnemar_exact(a, b) == pytest.approx(sum(total >= 5 for total in flips) / 8)
    rng = np.random.default_rng(2)
    first, second = rng.random(60) < 0.6, rng.random(60) < 0.4
    still = np.zeros(60)
    assert mcnemar_exact([first, still], [second, still]) == pytest.approx(mcnemar_exact(first, second), rel=1e-9)


def test_copying_a_run_does_not_make_it_surer() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(200) < 0.55, rng.random(200) < 0.5
    assert mcnemar_exact([a] * 3, [b] * 3) == pytest.approx(mcnemar_exact(a, b), rel=1e-9)


def test_holm_by_hand() -> None:
    """0.005 * 4, 0.01 * 3, 0.03 * 2; 0.04 * 1 may not fall below the one before it."""
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_iqm_by_hand() -> None:
    assert iqm([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]) == pytest.approx(3.5)  # two dropped at each end
    assert iqm([0.4]) == pytest.approx(0.4)


def test_pass_at_k_by_hand() -> None:
    """5 samples, 2 right: 1 - C(3,2)/C(5,2) = 0.7; and the estimate is what drawing every pair gives."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    right = [True, True, True, False, False, False, False]
    groups = list(itertools.combinations(right, 3))
    assert pass_at_k(7, 3, 3) == pytest.approx(sum(map(any, groups)) / len(groups))
    with pytest.raises(ValueError, match="1 <= k <= n"):
        pass_at_k(4, 1, 5)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        rate_ci95([0.0, float("nan")], seed=0)
    with pytest.raises(ValueError, match="finite"):
        rate_ci95([], seed=0)
    with pytest.raises(ValueError, match="paired"):
        paired_difference([1, 0], [1, 0, 1], seed=0)
