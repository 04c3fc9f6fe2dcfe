"""How numbers, threats and metrics are written in an audit's report. Formatting only."""

from __future__ import annotations

from pinchpoint.records import Share, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.records.metrics import METRICS
from pinchpoint.report.formatting import written
from pinchpoint.utils.numbers import budget

ACCURACIES = ("accuracy", "robust_over_clean")
"""Ends of the names of metrics that are shares, and so written in per cent."""

_NAMES = {
    "lipschitz": "Lipschitz constant (upper bound)",
    "median_radius": "Median certified radius",
}

_STAGES = {
    "clean": "wrong without attack",
    "certified": "certified: no attack can succeed",
    "survived": "withstood all",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent.

    >>> percent(0.6234), percent(None)
    ('62.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of two shares, in points of a hundred, with its sign.

    >>> points(-0.0313)
    '−3.1'
    """
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(share: Share) -> str:
    """The interval of a share, in per cent.

    >>> interval(Share(value=0.5, low=0.4, high=0.6, count=50, of=100))
    '40.0 to 60.0 %'
    """
    return f"{100 * share.low:.1f} to {100 * share.high:.1f} %"


def probability(p_value: float) -> str:
    """A p-value.

    >>> probability(0.00002), probability(0.04)
    ('< 0.001', '0.040')
    """
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def threat(norm: ThreatNorm, eps: float | None) -> str:
    """A norm with its budget.

    >>> threat("linf", 8 / 255)
    'ℓ∞, ε = 8/255'
    """
    return NORM_NAMES[norm] if eps is None else f"{NORM_NAMES[norm]}, ε = {budget(norm, eps)}"


def metric(name: str, norm: ThreatNorm | None = None, eps: float | None = None) -> str:
    """A metric with its threat.

    >>> metric("robust_accuracy", "l2", 0.5), metric("spectral_norm")
    ('Robust accuracy, ℓ₂, ε = 0.5', 'Spectral norm')
    """
    title = METRICS[name].title if name in METRICS else name.replace("_", " ").capitalize()
    called = _NAMES.get(name, title)
    return called if norm is None else f"{called}, {threat(norm, eps)}"


def amount(name: str, value: float) -> str:
    """A value of a metric: shares in per cent, other numbers as tables show them.

    >>> amount("robust_accuracy", 0.25), amount("lipschitz", 1234.5)
    ('25.0 %', '1,234')
    """
    return percent(value) if name.endswith(ACCURACIES) else written(value).replace("-", "−")


def stage(name: str) -> str:
    """What settled a sample, for readers.

    >>> stage("survived"), stage("apgd-ce")
    ('withstood all', 'apgd-ce')
    """
    return _STAGES.get(name, name)
