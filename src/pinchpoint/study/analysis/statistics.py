"""Correlations, paired differences and corrections for many tests, with seeds as repeated measures.

What an interval or a p-value here speaks about is another seed of the same training, on the same test samples: the
samples are shared by all models and are not resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pinchpoint.records import Interval
from pinchpoint.study.analysis.resampling import Chance, Floats, bootstrap, permuted, permuted_ranks

Kind = Literal["spearman", "pearson"]
Correction = Literal["holm", "benjamini_hochberg"]
_MOST_SIGNS = 20


def ranks(values: Sequence[float] | Floats) -> Floats:
    """Ranks from 1, ties sharing their mean.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    highest = np.cumsum(count)
    shared: Floats = (highest - (count - 1) / 2)[place]
    return shared


def spearman(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Spearman's rho of the known pairs, and its usual two-sided p (Student's t, n - 2 degrees of freedom).

    That p takes the pairs as independent; ``associate`` does not. None where fewer than three pairs or no variation leave
    them undefined. A hundred thousand pairs take some hundredths of a second.

    >>> spearman([1.0, 2.0, 3.0, None], [2.0, 4.0, 9.0, 1.0])
    (1.0, 0.0)
    """
    from scipy.special import stdtr  # scipy.stats has all this, and takes a second to import

    known_x, known_y, _ = _known(x, y, [0] * len(x))
    rho = _coefficient(ranks(known_x), ranks(known_y)) if len(known_x) > 2 else None
    if rho is None:
        return None, None
    freedom = len(known_x) - 2
    if 1.0 - abs(rho) < 1e-12:
        return rho, 0.0
    return rho, float(2.0 * stdtr(freedom, -abs(rho) * math.sqrt(freedom / (1.0 - rho * rho))))


@dataclass(frozen=True)
class Association:
    """How two measures go together within seeds.

    ``coefficient`` is the mean of the seeds' own (``by_seed``; None: no variation in that seed), ``pooled`` that over all
    models as if they were strangers. ``p_falls`` and ``p_rises`` are one-sided, ``p_value`` is twice the smaller, and
    ``floor`` the smallest p_value that these seeds and levels could have given.
    """

    kind: Kind
    models: int
    coefficient: float | None
    pooled: float | None
    by_seed: dict[int, float | None]
    interval: Interval | None
    p_falls: float
    p_rises: float
    p_value: float
    floor: float
    test: str


def associate(
    x: Sequence[float | None],
    y: Sequence[float | None],
    seeds: Sequence[int],
    *,
    kind: Kind = "spearman",
    draws: int = 19_999,
) -> Association | None:
    """Does ``y`` fall or rise with ``x`` within seeds?

    Each seed is a block in which the same levels were measured. Were ``y`` without any trend, every order of a seed's
    values would be as likely as any other, independently over seeds; the p-values are the chances of such orders. For
    Spearman without ties that is Page's test of ordered alternatives for repeated measures, exact. Three levels and three
    seeds can give a p of 2/216, four levels 2/13,824, two levels no less than 2/8.

    Args:
        x: one value a model, None where it is not known.
        y: likewise.
        seeds: the seed of each model.
        kind: of the coefficient.
        draws: permutations where they are too many to count.

    Returns:
        None where no seed has two models.

    >>> found = associate([1, 2, 3, 1, 2, 3], [9, 5, 1, 8, 6, 2], [0, 0, 0, 1, 1, 1])
    >>> found.coefficient, found.by_seed, found.p_falls == 1 / 36
    (-1.0, {0: -1.0, 1: -1.0}, True)
    """
    known_x, known_y, known_seeds = _known(x, y, seeds)
    score: Callable[[Floats], Floats] = ranks if kind == "spearman" else _standard
    order = np.argsort(known_seeds, kind="stable")
    names, starts = np.unique(known_seeds[order], return_index=True)
    blocks = dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
    scored = {seed: (score(known_x[at]), score(known_y[at])) for seed, at in blocks.items() if len(at) > 1}
    if not scored:
        return None
    by_seed = {seed: _coefficient(*scores) for seed, scores in scored.items()}
    defined = np.array([value for value in by_seed.values() if value is not None])
    chance = (permuted_ranks if kind == "spearman" else permuted)(list(scored.values()), draws=draws)
    interval = None
    if len(defined) == len(by_seed) > 1:
        interval = bootstrap(lambda drawn: float(defined[drawn].mean()), len(defined))
    return Association(
        kind=kind,
        models=len(known_x),
        coefficient=float(defined.mean()) if len(defined) else None,
        pooled=_coefficient(score(known_x), score(known_y)),
        by_seed=by_seed,
        interval=interval,
        p_falls=chance.p_low,
        p_rises=chance.p_high,
        p_value=min(1.0, 2 * min(chance.p_low, chance.p_high)),
        floor=min(1.0, 2 * chance.floor),
        test=_named(kind, chance),
    )


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds. ``effect_size`` is the mean in standard deviations between seeds (Cohen's d_z)."""

    mean: float
    deviation: float | None
    effect_size: float | None
    interval: Interval | None
    p_value: float | None
    p_signs: float
    floor: float | None
    test: str


def paired(differences: Sequence[float]) -> Difference:
    """Is the mean of one difference a seed other than zero?

    The test is Student's t over the seeds' differences. The exact test that needs no distribution, flipping signs, cannot
    give less than 2/2**n: .25 for three seeds, under .05 only from six on. The t test can, and pays with an assumption:
    that differences spread about their mean as a normal does, which three of them cannot show. Without an effect they are
    symmetric, and simulated accuracies of 200 or 500 samples give false alarms in 4 to 5 % of cases at three seeds (normal
    5, Laplace 3, uniform, the worst, 8). ``p_signs`` stands beside it for the doubtful.

    Equal differences in all seeds leave t undefined; the signs' p stands in then.

    Args:
        differences: one a seed.

    >>> found = paired([0.02, 0.03, 0.04])
    >>> round(found.mean, 3), round(found.p_value, 3), found.p_signs
    (0.03, 0.035, 0.25)
    """
    from scipy.special import stdtr, stdtrit

    values = np.asarray(differences, dtype=np.float64)
    seeds, mean = len(values), float(values.mean())
    p_signs = _flipped(values)
    deviation = float(values.std(ddof=1)) if seeds > 1 else None
    if deviation is None or deviation <= 1e-12 * max(1.0, abs(mean)):
        floor = 2.0 ** (1 - seeds)
        return Difference(
            mean,
            deviation,
            None,
            None,
            p_signs if seeds > 1 else None,
            p_signs,
            floor,
            f"sign flips over {seeds} seeds",
        )
    error = deviation / math.sqrt(seeds)
    half = float(stdtrit(seeds - 1, 0.975)) * error
    test = f"paired t over {seeds} seeds"
    return Difference(
        mean=mean,
        deviation=deviation,
        effect_size=mean / deviation,
        interval=Interval(low=mean - half, high=mean + half, level=0.95, method=test),
        p_value=float(2 * stdtr(seeds - 1, -abs(mean) / error)),
        p_signs=p_signs,
        floor=None,
        test=test,
    )


def corrected(p_values: Sequence[float | None], method: Correction = "holm") -> list[float | None]:
    """P-values that take their number into account. None (no test could be made) stays None and does not count.

    Args:
        p_values: of all tests made together.
        method: ``holm`` keeps the chance of even one false finding at the level (Holm 1979, Scand. J. Stat. 6: 65);
            ``benjamini_hochberg`` the expected share of false ones among what is found (Benjamini & Hochberg 1995, J. R.
            Stat. Soc. B 57: 289).

    >>> corrected([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    made = [place for place, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[place] for place in made], dtype=np.float64)
    order, tests = np.argsort(values, kind="stable"), len(values)
    raised = values[order]
    if method == "holm":
        raised = np.maximum.accumulate(raised * np.arange(tests, 0, -1))
    else:
        raised = np.minimum.accumulate((raised * tests / np.arange(1, tests + 1))[::-1])[::-1]
    found: list[float | None] = [None] * len(p_values)
    for place, p in zip(order, np.minimum(raised, 1.0), strict=True):
        found[made[place]] = float(p)
    return found


def _known(x: Sequence[Any], y: Sequence[Any], seeds: Sequence[int]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The pairs of which both are finite numbers."""
    columns = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)  # None turns into NaN
    known = np.isfinite(columns[0]) & np.isfinite(columns[1])
    return columns[0][known], columns[1][known], np.asarray(seeds, dtype=np.int64)[known]


def _standard(values: Floats) -> Floats:
    """Centred, and of unit length; zeros where there is no variation."""
    centred = values - values.mean()
    length = float(np.linalg.norm(centred))
    unit: Floats = centred / length if length > 1e-12 * max(1.0, float(np.abs(values).max())) else 0 * centred
    return unit


def _coefficient(x: Floats, y: Floats) -> float | None:
    """Pearson's r, None where there is no variation."""
    if len(x) < 2:
        return None
    r = float(_standard(x) @ _standard(y))
    if not _standard(x).any() or not _standard(y).any():
        return None
    return max(-1.0, min(1.0, round(r, 15)))


def _named(kind: Kind, chance: Chance) -> str:
    how = "exact" if chance.exact else "drawn"
    return f"{'Page’s trend test' if kind == 'spearman' else 'permutation test of r'} within seeds, {how}"


def _flipped(values: Floats) -> float:
    """Two-sided p of the mean when every difference may have had the other sign; the t test's rival without assumptions."""
    if len(values) > _MOST_SIGNS:
        drawn = np.random.default_rng(0).choice((-1.0, 1.0), size=(2**16, len(values)))
        signs = np.vstack([np.ones(len(values)), drawn])  # what was seen counts as a draw
    else:
        signs = 1.0 - 2.0 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    sums, seen = np.abs(signs @ values), abs(float(values.sum()))
    return float((sums >= seen - 1e-12 * max(1.0, float(np.abs(values).sum()))).mean())
