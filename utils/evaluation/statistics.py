"""How sure a number is: bootstrap intervals, exact paired tests, and estimates that do not flatter.

Pure functions of their arguments; every random draw comes from a stream keyed by the seed and the function's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.seeds import generator

DRAWS = 10_000
CHUNK_CELLS = 4_000_000  # multinomial counts held at once, 32 MB


def rate_ci95(values: ArrayLike, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """95 % bootstrap percentile interval (Efron 1979) of the mean of `values` [n]; it always contains the mean.

    Resampling n values with replacement means drawing how often each distinct value occurs, so the counts are drawn
    from the multinomial itself: for 0/1 data that is the exact binomial. Where every value is the same 0 or 1 the
    bootstrap has no width, although n records cannot prove a rate of 0 or 1; there the exact bound of
    Clopper and Pearson (1934) closes the interval: 0 of n gives [0, 1 - 0.025^(1/n)].
    """
    array = _finite(values)
    n = len(array)
    distinct, counts = np.unique(array, return_counts=True)
    mean = float(array.mean())
    if len(distinct) == 1:
        bound = 1.0 - 0.025 ** (1.0 / n)
        return (0.0, bound) if mean == 0.0 else (1.0 - bound, 1.0) if mean == 1.0 else (mean, mean)
    rng = generator(seed, "rate_ci95")
    means = np.concatenate(
        [rng.multinomial(n, counts / n, size=size) @ distinct / n for size in _chunks(draws, len(distinct))]
    )
    return _percentiles(means, mean)


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean of `a - b` and its 95 % paired bootstrap interval: (mean, low, high).

    `a` and `b` are [n] (one run each) or [s, n] (s runs, one per seed, paired row by row) over the same n records.
    Records are resampled as pairs; with several runs the runs are resampled too, both at once (the pigeonhole bootstrap
    of Owen 2007, Ann. Appl. Stat.), because a record that is hard is hard in every run. With few runs the spread
    between them is itself poorly known: where it outweighs the noise of the records, the interval is too narrow.
    """
    difference = _paired(a, b)
    runs, n = difference.shape
    mean = float(difference.mean())
    patterns, counts = np.unique(difference, axis=1, return_counts=True)  # records that behave alike are one cell
    rng = generator(seed, "paired_difference")
    means = []
    for size in _chunks(draws, patterns.shape[1]):
        records = rng.multinomial(n, counts / n, size=size) / n  # [size, patterns]
        seeds = rng.multinomial(runs, np.full(runs, 1.0 / runs), size=size) / runs  # [size, runs]
        means.append(np.einsum("dp,dp->d", seeds @ patterns, records))
    return (mean, *_percentiles(np.concatenate(means), mean))


def discordant(a: ArrayLike, b: ArrayLike) -> tuple[int, int]:
    """How often only `a` is right and how often only `b` is: 0/1 arrays [n] or [s, n]."""
    difference = _paired(a, b)
    return int((difference > 0).sum()), int((difference < 0).sum())


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test: are the discordant pairs of 0/1 data [n] a fair coin?

    With several runs [s, n] the runs of one record are not independent, so the coin is tossed once per record for the
    sum over its runs: the exact sign-flip test, which is McNemar's for one run. It speaks about these runs; whether
    other seeds would agree is what `paired_difference` asks.
    """
    difference = _paired(a, b)
    if len(difference) == 1:
        from scipy.stats import binomtest

        only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
        return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b, 0.5).pvalue)
    return _sign_flip(np.rint(difference.sum(axis=0)).astype(int))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979), in the order given: k-th smallest times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


def iqm(values: ArrayLike) -> float:
    """Interquartile mean (Agarwal et al. 2021, arXiv:2108.13264): the mean without the lowest and highest quarter."""
    from scipy.stats import trim_mean

    return float(trim_mean(_finite(values), 0.25))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from n samples of which c are.

    Chen et al. 2021, arXiv:2107.03374, eq. 1: 1 - C(n - c, k) / C(n, k), in exact integers.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def _sign_flip(sums: NDArray[np.int_]) -> float:
    """P(|sum of +-|x|| >= |sum of x|) over all signs, by convolution: exact counts would overflow, shares do not."""
    sizes = np.abs(sums[sums != 0])
    shares, reach = np.ones(1), int(sizes.sum())
    for size in sizes:
        grown = np.zeros(len(shares) + 2 * int(size))
        grown[: len(shares)] += shares / 2
        grown[2 * int(size) :] += shares / 2
        shares = grown
    totals = np.arange(-reach, reach + 1)
    return min(1.0, float(shares[np.abs(totals) >= abs(int(sums.sum()))].sum()))


def _paired(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """a - b as [runs, records]."""
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b))
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            f"paired values must be two equal, non-empty [n] or [s, n] arrays, got {first.shape} and {second.shape}"
        )
    return _finite(first - second)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("statistics need at least one value and only finite ones")
    return array


def _chunks(draws: int, cells: int) -> list[int]:
    """`draws` in pieces whose tables of counts fit in CHUNK_CELLS."""
    size = max(1, CHUNK_CELLS // cells)
    return [min(size, draws - start) for start in range(0, draws, size)]


def _percentiles(means: NDArray[np.float64], mean: float) -> tuple[float, float]:
    low, high = np.percentile(means, (2.5, 97.5))
    return min(float(low), mean), max(float(high), mean)
