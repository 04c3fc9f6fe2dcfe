"""What a change should bring: a rule that a trial can prove wrong.

Lowering a layer's operator norm by the factor f lowers its log gain by log f at most. Where the layer has the share s of the
excess, an adversary could at best be made to need a budget larger by f^-s: robust accuracy at eps would become what the
measured curve says at eps f^s. That much is seldom reached, since an attack finds other ways and fine-tuning gives some of
the gain back. So what is predicted is a share of it, ``REACHED``, measured over networks by ``python -m benchmarks.advice``;
the prediction fails below the interval that holds now, and above it by more than ``MOST`` of that gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pinchpoint.records import BudgetPoint, Prediction, Share, ThreatNorm

TELLING = (0.2, 0.8)
"""Shares of clean accuracy between which robust accuracy tells: outside, nearly all samples stand or fall either way, and
the budget nearest to the middle is predicted for as well."""


REACHED, MOST = 0.16, 0.3
"""What of the gain that the rule allows for was seen, beyond that of fine-tuning alone, over 30 small networks (95 %: .12 to
.21); and more than any kind of them reached on average."""


@dataclass(frozen=True)
class Curves:
    """Measured accuracies.

    Attributes:
        points: at rising budgets, by norm.
        eps: the judged budgets, by norm.
        clean: without attack, where the curves begin.
    """

    points: Mapping[ThreatNorm, Sequence[BudgetPoint]]
    eps: Mapping[ThreatNorm, float]
    clean: Share | None = None

    def robust(self, factor: float, how: str) -> list[Prediction]:
        """Robust accuracies where budgets count as ``factor`` times as large as they did."""
        found = []
        for norm in self._norms():
            for eps in self._budgets(norm):
                now, low, high = self._read(norm, eps)
                gain = self._read(norm, eps * factor)[0] - now
                after = (now + REACHED * gain, low, min(1.0, high + MOST * gain))
                found.append(prediction("robust_accuracy", (norm, eps), now, after, how))
        return found

    def unchanged(self, how: str) -> list[Prediction]:
        """Clean accuracy as it is."""
        one = self.clean
        if one is None:
            return []
        return [prediction("clean_accuracy", (None, None), one.value, (one.value, one.low, one.high), how)]

    def half(self) -> tuple[ThreatNorm, float] | None:
        """The first budget on record at which half of clean accuracy is gone."""
        for norm in self._norms():
            for point in self.points[norm]:
                if self.clean is not None and point.robust.value <= self.clean.value / 2:
                    return norm, point.eps
        return None

    def _norms(self) -> list[ThreatNorm]:
        return [norm for norm in self.eps if self.points.get(norm)]

    def _budgets(self, norm: ThreatNorm) -> list[float]:
        """The judged one, and where it says little one that says more."""
        eps, whole = self.eps[norm], self._read(norm, 0.0)[0]
        middle = min(self.points[norm], key=lambda point: abs(point.robust.value - whole / 2))
        low, high = (share * whole for share in TELLING)
        tells = low <= self._read(norm, eps)[0] <= high or not low <= middle.robust.value <= high
        return [eps] if tells else [eps, middle.eps]

    def _read(self, norm: ThreatNorm, budget: float) -> tuple[float, float, float]:
        """The curve and its interval at a budget, on straight lines between its points."""
        at = [(point.eps, point.robust) for point in self.points[norm]]
        if self.clean is not None and at[0][0] > 0:
            at.insert(0, (0.0, self.clean))
        budgets = [eps for eps, _ in at]
        value, low, high = (
            float(np.interp(budget, budgets, [getattr(share, key) for _, share in at]))
            for key in ("value", "low", "high")
        )
        return value, low, high


def prediction(
    metric: str,
    where: tuple[ThreatNorm | None, float | None],
    before: float,
    after: tuple[float, float, float],
    how: str,
) -> Prediction:
    """``after`` is what is predicted, with its interval."""
    value, low, high = after
    norm, eps = where
    return Prediction(metric=metric, norm=norm, eps=eps, before=before, after=value, low=low, high=high, how=how)
