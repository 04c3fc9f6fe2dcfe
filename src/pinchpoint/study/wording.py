"""Verdicts in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pinchpoint.records import Ruling
from pinchpoint.study.claims import ContrastConfig, Side, TrendConfig
from pinchpoint.study.statistics import Correction

if TYPE_CHECKING:
    from pinchpoint.study.reading import Reading

CORRECTIONS: dict[Correction, str] = {"holm": "Holm’s", "benjamini_hochberg": "Benjamini and Hochberg’s"}
_NAMES = {
    "gap": "the loss gap",
    "gap_bound": "the bound on the gap",
    "lipschitz": "the Lipschitz bound",
    "lipschitz_structure": "the structure × scale bound",
    "lipschitz_lower": "the lower Lipschitz bound",
    "robust_over_clean": "robust over clean accuracy",
    "alignment_baseline": "the alignment of a random direction",
    "neuron": "neuron compressibility",
    "spectral": "spectral compressibility",
    "query_accuracy": "accuracy under queries",
    "transferred_accuracy": "accuracy under transferred examples",
    "universal_accuracy": "accuracy under one universal perturbation",
    **{f"recall_image_to_text_{k}": f"recall at {k} of an image’s captions" for k in (1, 5, 10)},
    **{f"recall_text_to_image_{k}": f"recall at {k} of a caption’s image" for k in (1, 5, 10)},
}
WITHOUT_BUDGET = ("lipschitz", "lipschitz_structure", "lipschitz_lower")
"""Measured in a norm, whatever the budget."""


def name(metric: str) -> str:
    """A metric as people say it.

    >>> name("clean_accuracy"), name("gap")
    ('clean accuracy', 'the loss gap')
    """
    return _NAMES.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether a metric is a share of samples, whose differences are told in points."""
    return metric.endswith("accuracy") or metric == "robust_over_clean" or metric.startswith("recall_")


def p_text(p: float) -> str:
    """A p-value with two digits.

    >>> p_text(0.0345), p_text(0.25), p_text(1e-9)
    ('p = 0.035', 'p = 0.25', 'p < 0.0001')
    """
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def after(tests: int, correction: Correction) -> str:
    """What a corrected p-value has been corrected for."""
    return f" after {CORRECTIONS[correction]} correction over {tests} tests" if tests > 1 else ""


def sides(how: ContrastConfig) -> str:
    """Both sides of a contrast.

    >>> of, than = Side(family="a", label="0.5"), Side(family="b", label="0.5")
    >>> sides(ContrastConfig(metric="clean_accuracy", expected="higher", of=of, than=than))
    'a 0.5 against b 0.5'
    """
    return f"{_side(how, how.of)} against {_side(how, how.than)}"


def way(metric: str, levels: Iterable[tuple[str, float]]) -> str:
    """How the means go along a family, by way of an extreme between its ends."""
    known = list(levels)
    if len(known) < 2:
        return ""
    first, last = known[0], known[-1]
    low, high = sorted((first[1], last[1]))
    beyond = max(known[1:-1], key=lambda level: max(level[1] - high, low - level[1]), default=first)
    stops = [first, *([beyond] if beyond[1] > high or beyond[1] < low else []), last]
    told = [f"{_amount(metric, mean)} ({label})" for label, mean in stops]
    return f"from {' over '.join(told[:-1])} to {told[-1]}"


def means(metric: str, of: float, than: float) -> str:
    """The means over seeds on both sides of a contrast."""
    return f"{_amount(metric, of)} against {_amount(metric, than)}"


def sentence(
    how: TrendConfig | ContrastConfig,
    eps: float | None,
    ruling: Ruling,
    reason: str | None,
    reading: Reading,
    p: float | None,
    tests: int,
    correction: Correction,
) -> str:
    """The verdict on one claim in a sentence: what was found, how large, how sure, and why not if it is undecided."""
    under = f" under {how.norm} {eps:g}" if eps is not None else f" in {how.norm}" if how.norm else ""
    what = f"{name(how.metric)}{under}"
    if isinstance(how, ContrastConfig):
        said, figures = _contrast(how, what, reading)
    else:
        said, figures = _trend(how, what, reading, ruling != "undecided")
    if reading.effect is None:
        return f"Undecided, because {reason}."
    sure = []
    if reading.p_value is not None:
        sure = [p_text(reading.p_value) if p is None else f"{p_text(p)}{after(tests, correction)}"]
    told = f"{said} ({'; '.join([figures, *sure])}){', ' + reading.way if reading.way else ''}"
    return f"Undecided, because {reason}: {told}." if reason else f"{ruling.capitalize()}: {told}."


def _trend(how: TrendConfig, what: str, reading: Reading, decided: bool) -> tuple[str, str]:
    verb = "against" if not decided else "falls with" if (reading.effect or 0.0) < 0 else "rises with"
    known = [rho for rho in reading.by_seed if rho is not None]
    count = f"{len(reading.seeds)} {'seed' if len(reading.seeds) == 1 else 'seeds'}"
    figures = f"Spearman {reading.effect or 0.0:+.2f} over {count}"
    if len(known) > 1:
        low, high = f"{min(known):+.2f}", f"{max(known):+.2f}"
        figures += f", {low} in each" if low == high else f", {low} to {high} by seed"
    if len(reading.parts) > 1:
        figures += "; " + ", ".join(
            f"{part.family} {'undefined' if part.rho is None else format(part.rho, '+.2f')}" for part in reading.parts
        )
    return f"{what} {verb} {name(how.against)} in {reading.where}", figures


def _contrast(how: ContrastConfig, what: str, reading: Reading) -> tuple[str, str]:
    effect = reading.effect or 0.0
    share = is_share(how.metric)
    size = f"{100 * abs(effect):.1f} points" if share else f"{abs(effect):.3g}"
    more = "higher" if effect >= 0 else "lower"
    figures = f"paired by {len(reading.seeds)} {'seed' if len(reading.seeds) == 1 else 'seeds'}"
    if reading.interval is not None:
        low, high = reading.interval.low, reading.interval.high
        ends = f"{100 * low:+.1f} to {100 * high:+.1f}" if share else f"{low:+.3g} to {high:+.3g}"
        figures += f", {ends} with {100 * reading.interval.level:.0f} % confidence"
    return f"{what} is {size} {more} for {_side(how, how.of)} than for {_side(how, how.than)}", figures


def _side(how: ContrastConfig, side: Side) -> str:
    label = "" if side.label is None else f" {side.label}"
    metric = "" if side.metric in (None, how.metric) else f" ({name(side.metric)})"
    return f"{side.family}{label}{metric}"


def _amount(metric: str, value: float) -> str:
    return f"{value:.2f}" if is_share(metric) or 0.1 <= abs(value) < 10 else f"{value:.3g}"
