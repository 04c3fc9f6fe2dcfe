"""Shares of samples with their intervals, and two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest

from pinchpoint.errors import DataError
from pinchpoint.records import Paired, Share, ThreatNorm


def share(count: int, of: int) -> Share:
    """``count`` of ``of``, with Wilson's 95 % interval (Wilson 1927).

    >>> one = share(8, 10)
    >>> one.value, round(one.low, 3), round(one.high, 3)
    (0.8, 0.49, 0.943)
    """
    if of < 1:
        raise DataError("a share needs one sample or more", of, "give more samples")
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Share(value=count / of, low=float(interval.low), high=float(interval.high), count=count, of=of)


def counted(right: Sequence[bool]) -> Share:
    """The share of what is true."""
    return share(sum(right), len(right))


def alike(
    trials: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    felled: tuple[Sequence[int | None], Sequence[int | None]],
) -> tuple[list[bool], list[bool], list[tuple[str, ...]]]:
    """Which of the same samples stand of two models, under the attacks that both were due for and nothing else.

    A sample is judged after as many trials as make the same set of attacks for both models. That depends on what it was
    due for and never on what became of it, so no model gains by it. Samples without such a set are left out.

    Args:
        trials: of each model, the attacks each sample was due for, in turn.
        felled: of each model, after how many of its trials each sample had fallen; None where it stands after all of them.

    Returns:
        Whether each sample that can be compared stands, of the first model and of the second; and what both faced on it.

    >>> trials = [["AutoPGD"], ["AutoPGD", "standard"]], [["AutoPGD", "standard"], ["AutoPGD", "standard"]]
    >>> alike(trials, ([None, None], [2, 2]))
    ([True, True], [True, False], [('AutoPGD',), ('AutoPGD', 'standard')])
    """
    standing: tuple[list[bool], list[bool]] = ([], [])
    faced = []
    for first, second, *fell in zip(*trials, *felled, strict=False):
        shared = [n for n in range(1, min(len(first), len(second)) + 1) if set(first[:n]) == set(second[:n])]
        if not shared:
            continue
        faced.append(tuple(first[: shared[-1]]))
        for model, after in zip(standing, fell, strict=True):
            model.append(after is None or after > shared[-1])
    return *standing, faced


def paired(
    metric: str, first: Sequence[bool], second: Sequence[bool], norm: ThreatNorm | None = None, eps: float | None = None
) -> Paired:
    """Two models on the same samples: which are right, the difference with its interval, and the chance of it.

    The interval is Newcombe's for paired shares (1998, method 10), the test McNemar's, exact.

    Args:
        metric: what being right means.
        first, second: whether each sample is right, of the same samples in the same order.
        norm, eps: of the threat, where there is one.

    >>> row = paired("accuracy", [True] * 8 + [False] * 2, [True] * 2 + [False] * 8)
    >>> row.only_first, row.only_second, round(row.difference, 2), row.p_value
    (6, 0, -0.6, 0.03125)
    """
    if len(first) != len(second):
        raise DataError("models are compared on the same samples", f"{len(first)} and {len(second)}", "judge both")
    pairs = list(zip(first, second, strict=True))
    both, only_first = pairs.count((True, True)), pairs.count((True, False))
    only_second, neither = pairs.count((False, True)), pairs.count((False, False))
    discordant = only_first + only_second
    left, right = counted(first), counted(second)
    low, high = _newcombe(left, right, both, neither, only_first, only_second)
    return Paired(
        metric=metric,
        norm=norm,
        eps=eps,
        first=left,
        second=right,
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        difference=right.value - left.value,
        low=low,
        high=high,
        p_value=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    )


def _newcombe(first: Share, second: Share, both: int, neither: int, one: int, other: int) -> tuple[float, float]:
    """Of second minus first: the Wilson intervals of the two, and how they go together (phi, corrected)."""
    margins = (both + one) * (other + neither) * (both + other) * (one + neither)
    together = float(both * neither - one * other)
    n = first.of
    if together > 0:
        together = max(together - n / 2, 0.0)
    phi = together / math.sqrt(margins) if margins else 0.0
    down, up = (
        (second.value - second.low, first.high - first.value),
        (second.high - second.value, first.value - first.low),
    )
    difference = second.value - first.value
    low = difference - _joined(*down, phi)
    high = difference + _joined(*up, phi)
    return low, high


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))
