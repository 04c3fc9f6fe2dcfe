"""What chance alone would do: permutations within seeds, exact where they can be counted, and resampled seeds.

Seeds are the independent units everywhere here. Models of one seed share their first weights and the order of their
data, so they are never resampled or permuted as if they were strangers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pinchpoint.records import Interval

Floats = NDArray[np.float64]

_MOST_LEVELS, _MOST_SEEDS = 10, 50
"""Up to here the sums over all permutations are counted (2**10 subsets a seed); beyond they are drawn."""
_MOST_SUMS = 200_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Chance:
    """How often permuting within seeds gives as little (``p_low``) or as much (``p_high``) as was seen.

    ``floor`` is the smallest of either that these seeds and levels could have given.
    """

    p_low: float
    p_high: float
    floor: float
    exact: bool


def permuted_ranks(seeds: Sequence[tuple[Floats, Floats]], *, draws: int = 19_999, seed: int = 0) -> Chance:
    """The chance of the sum of rank products when the second ranks of every seed are permuted.

    Without ties that sum is Page's L (Page 1963, J. Am. Stat. Assoc. 58: 216), seeds being the blocks, and the chances are
    its exact ones; with ties they are exact given the ties. Counted for up to 10 levels and 50 seeds, else drawn.

    Args:
        seeds: for each seed the ranks (L,) of the predictor and the ranks (L,) of the response; halves for ties.
        draws: permutations to draw where they are too many to count.
        seed: of the draws.

    >>> falling = (np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    >>> permuted_ranks([falling, falling]).p_low == 1 / 36
    True
    """
    doubled = [(np.rint(2 * x).astype(np.int64), np.rint(2 * y).astype(np.int64)) for x, y in seeds]
    if max(len(x) for x, _ in doubled) > _MOST_LEVELS or len(doubled) > _MOST_SEEDS:
        return _drawn(seeds, draws, seed)
    chances = np.ones(1)
    for x, y in doubled:
        chances = np.convolve(chances, _sums(tuple(np.sort(x)), tuple(np.sort(y))))
    seen = sum(int(x @ y) for x, y in doubled)
    possible = chances[np.flatnonzero(chances)[[0, -1]]]
    p_low, p_high = float(chances[: seen + 1].sum()), float(chances[seen:].sum())
    return Chance(min(p_low, 1.0), min(p_high, 1.0), float(possible.min()), exact=True)


def permuted(seeds: Sequence[tuple[Floats, Floats]], *, draws: int = 19_999, seed: int = 0) -> Chance:
    """The same for any scores: all permutations where they are few (200,000 sums), else drawn."""
    if math.prod(math.factorial(len(x)) for x, _ in seeds) > _MOST_SUMS:
        return _drawn(seeds, draws, seed)
    sums = np.zeros(1)
    for x, y in seeds:
        orders = np.array(list(itertools.permutations(range(len(y)))))
        sums = np.add.outer(sums, y[orders] @ x).ravel()
    return _counted(sums, seeds)


@functools.lru_cache(maxsize=512)
def _sums(x: tuple[int, ...], y: tuple[int, ...]) -> Floats:
    """The chance of each value of sum(x * permuted y), index by index: the first m of x meet every subset of m of y."""
    most = int(np.dot(x, y))  # both sorted: no permutation gives more
    counts = np.zeros((2 ** len(y), most + 1))
    counts[0, 0] = 1.0
    for subset in range(2 ** len(y)):
        met = subset.bit_count()
        for place, value in enumerate(y):
            if not subset >> place & 1:
                step = x[met] * value
                counts[subset | 1 << place, step:] += counts[subset, : most + 1 - step]
    chances: Floats = counts[-1] / math.factorial(len(y))
    return chances


def _drawn(seeds: Sequence[tuple[Floats, Floats]], draws: int, seed: int) -> Chance:
    generator = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for x, y in seeds:
        sums += generator.permuted(np.broadcast_to(y, (draws, len(y))), axis=1) @ x
    found = _counted(sums, seeds)
    low, high = ((1 + draws * p) / (1 + draws) for p in (found.p_low, found.p_high))  # what was seen counts as a draw
    return Chance(low, high, 1 / (1 + draws), exact=False)


def _counted(sums: Floats, seeds: Sequence[tuple[Floats, Floats]]) -> Chance:
    seen = sum(float(x @ y) for x, y in seeds)
    near = _ROUNDING * max(1.0, float(np.abs(sums).max()))
    ends = [float((np.abs(sums - end) <= near).mean()) for end in (sums.min(), sums.max())]
    return Chance(float((sums <= seen + near).mean()), float((sums >= seen - near).mean()), min(ends), exact=True)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    seeds: int,
    *,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    draws: int = 2_000,
    seed: int = 0,
) -> Interval:
    """An interval for a statistic of seeds, from resampled seeds: all resamples where they are few (up to 7 seeds).

    Three seeds have ten distinct resamples, and all three may be the same seed with chance 1/27 > 2.5 %: the interval is
    the range of the seeds, whatever level was asked for. An interval within the range of n values misses their median with
    chance 2**(1 - n) at least, so three seeds can claim 75 %, five 94 %, six and more the usual 95 %; the interval's
    ``level`` says which.

    Args:
        statistic: of the positions (seeds,) of the seeds drawn, with repetitions.
        seeds: how many there are, two or more.
        level: wanted confidence.
        method: ``percentile``, or bias-corrected and accelerated (Efron 1987, J. Am. Stat. Assoc. 82: 171).
        draws: resamples to draw where they are too many to list.
        seed: of the draws.

    >>> values = np.array([0.5, 0.7, 0.6])
    >>> found = bootstrap(lambda drawn: values[drawn].mean(), 3)
    >>> round(found.low, 3), round(found.high, 3), found.level, found.method
    (0.5, 0.7, 0.75, 'percentile bootstrap, all 10 resamples of 3 seeds')
    """
    distinct = math.comb(2 * seeds - 1, seeds)
    if distinct <= draws:
        resamples = np.array(list(itertools.combinations_with_replacement(range(seeds), seeds)))
        weights = np.array([_ways(row, seeds) for row in resamples]) / seeds**seeds
        how = f"all {distinct} resamples of {seeds} seeds"
    else:
        resamples = np.random.default_rng(seed).integers(seeds, size=(draws, seeds))
        weights = np.full(draws, 1 / draws)
        how = f"{draws} resamples of {seeds} seeds"
    values = np.array([statistic(row) for row in resamples])
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    low, high = (1 - level) / 2, (1 + level) / 2
    if method == "bca":
        low, high = _accelerated(statistic, seeds, values, weights, low, high)
    below = np.cumsum(weights)
    above = np.cumsum(weights[::-1])[::-1]
    first = int(np.argmax(below >= low - _ROUNDING))
    last = int(np.flatnonzero(above >= 1 - high - _ROUNDING)[-1])
    return Interval(
        low=float(values[first]),
        high=float(values[last]),
        level=min(level, 1 - 2.0 ** (1 - seeds)),
        method=f"{'BCa' if method == 'bca' else method} bootstrap, {how}",
    )


def _ways(row: NDArray[np.intp], seeds: int) -> int:
    """In how many orders a resample can be drawn."""
    return math.factorial(seeds) // math.prod(math.factorial(int(count)) for count in np.bincount(row))


def _accelerated(
    statistic: Callable[[NDArray[np.intp]], float],
    seeds: int,
    values: Floats,
    weights: Floats,
    low: float,
    high: float,
) -> tuple[float, float]:
    """Where the ends of a BCa interval lie in the distribution of the resamples."""
    from scipy.special import ndtr, ndtri

    everyone = np.arange(seeds)
    seen = statistic(everyone)
    near = _ROUNDING * max(1.0, abs(seen))
    share = weights[values < seen - near].sum() + weights[np.abs(values - seen) <= near].sum() / 2
    left_out = np.array([statistic(np.delete(everyone, place)) for place in everyone])
    deviations = left_out.mean() - left_out
    scale = float((deviations**2).sum()) ** 1.5
    if scale == 0 or not 0 < share < 1:  # no variation: nothing to correct
        return low, high
    bias, acceleration = float(ndtri(share)), float((deviations**3).sum()) / (6 * scale)
    z = bias + ndtri(np.array([low, high]))
    at = ndtr(bias + z / (1 - acceleration * z))
    return float(at[0]), float(at[1])
