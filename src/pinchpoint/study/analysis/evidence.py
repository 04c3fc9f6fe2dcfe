"""What the rows of a study say about one claim at one budget: effect, seed by seed, and the chance of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pinchpoint.records import Interval, Part, Ruling
from pinchpoint.records.metrics import METRICS
from pinchpoint.study.analysis.resampling import bootstrap
from pinchpoint.study.analysis.statistics import Association, Correction, associate, paired
from pinchpoint.study.config.claims import ContrastConfig, Side, TrendConfig

Row = Mapping[str, Any]

LEVEL = 0.05
_SAME = 1e-6
"""Budgets closer than this (relatively) are one: a decimal in a file may be a rounded fraction."""


@dataclass
class Reading:
    """What the rows say about one claim at one budget, before any correction.

    ``effect`` and ``by_seed`` are as in ``Verdict``. ``reason`` says why the signs decide nothing, ``testable`` whether
    other orders of the same values could have decided anything: if not, there is no test to correct for. ``way`` tells
    the means along, ``shape`` a rise and fall.
    """

    where: str
    seeds: list[int] = field(default_factory=list)
    by_seed: list[float | None] = field(default_factory=list)
    effect: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    floor: float | None = None
    test: str = ""
    parts: list[Part] = field(default_factory=list)
    way: str = ""
    shape: str = ""
    reason: str | None = None
    testable: bool = True


def read(how: TrendConfig | ContrastConfig, eps: float | None, rows: Sequence[Row]) -> Reading:
    return _read_contrast(how, eps, rows) if isinstance(how, ContrastConfig) else _read_trend(how, eps, rows)


def _read_trend(how: TrendConfig, eps: float | None, rows: Sequence[Row]) -> Reading:
    names = list(how.families or dict.fromkeys(row["family"] for row in rows))
    groups = {name: [row for row in rows if row["family"] == name] for name in names}
    if how.pool:
        together = [row for name in names for row in groups[name]]
        groups = {" and ".join(names): list({(row["run"], row["seed"]): row for row in together}.values())}
    reading = Reading(where=" and ".join(names))
    found: dict[str, Association] = {}
    for name, group in groups.items():
        x, y = _columns(how, eps, group)
        association = associate(x, y, [row["seed"] for row in group])
        if association is None:
            reading.reason = reading.reason or _missing(how, name, x, y)
        else:
            found[name] = association
            reading.parts.append(_part(name, association))
    if not found:
        reading.testable = False
        return reading
    associations = list(found.values())
    reading.seeds = sorted({seed for one in associations for seed in one.by_seed})
    reading.by_seed = [_mean(one.by_seed.get(seed) for one in associations) for seed in reading.seeds]
    reading.effect = _mean(one.coefficient for one in associations)
    reading.interval = _interval(reading.by_seed)
    reading.p_value = max(one.p_value for one in associations)
    reading.floor = max(one.floor for one in associations)
    reading.test = associations[0].test
    reading.reason = reading.reason or _disagreement(how, found)
    flat = any(rho is None for one in associations for rho in one.by_seed.values())
    reading.testable = len(found) == len(groups) and reading.floor < LEVEL and not flat
    if min(len(one.by_seed) for one in associations) < 2:
        reading.p_value = reading.floor = None
    if len(names) == 1:
        reading.way = trend_text(how.metric, _levels(how, eps, groups[names[0]]))
        reading.shape = _shape(how, eps, groups[names[0]])
    return reading


def _columns(how: TrendConfig, eps: float | None, rows: Sequence[Row]) -> tuple[list[float | None], list[float | None]]:
    """What is ranked against what."""
    x = [_value(row, how.against, how.norm, None) for row in rows]
    return x, [_value(row, how.metric, how.norm, eps) for row in rows]


def _missing(how: TrendConfig, name: str, x: Sequence[float | None], y: Sequence[float | None]) -> str:
    for metric, values in ((how.metric, y), (how.against, x)):
        if all(value is None for value in values):
            return f"{metric_name(metric)} was not measured in {name}"
    return f"no seed of {name} has two levels"


def _shape(how: TrendConfig, eps: float | None, rows: Sequence[Row]) -> str:
    """A rise and fall, or the other way round, that every seed shows and no trend can."""
    turns = set()
    seeds = _grouped(rows, "seed")
    for group in seeds.values():
        x, y = _columns(how, eps, group)
        known = sorted((a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None)
        values = [b for _, b in known]
        inner, ends = values[1:-1], (values[0], values[-1]) if values else (0.0, 0.0)
        rises, falls = max(inner, default=ends[0]) > max(ends), min(inner, default=ends[0]) < min(ends)
        turns.add(
            "rises and then falls" if rises and not falls else "falls and then rises" if falls and not rises else ""
        )
    return f"in every seed it {turns.pop()}" if len(seeds) > 1 and len(turns) == 1 and "" not in turns else ""


def _disagreement(how: TrendConfig, found: Mapping[str, Association]) -> str | None:
    """Why the signs decide nothing, if they do not."""
    if min(len(association.by_seed) for association in found.values()) < 2:
        return "one seed decides nothing"
    signs = {}
    for name, association in found.items():
        flat = [seed for seed, rho in association.by_seed.items() if rho is None]
        if flat:
            return f"{metric_name(how.metric)} or {metric_name(how.against)} does not vary in seed {flat[0]} of {name}"
        signs[name] = [sign(rho) for rho in association.by_seed.values()]
    mixed = [name for name, of_seeds in signs.items() if len(set(of_seeds)) > 1 or 0 in of_seeds]
    if mixed:
        falling, rising = (signs[mixed[0]].count(sign) for sign in (-1, 1))
        flat_too = len(signs[mixed[0]]) - falling - rising
        none = f", neither in {flat_too}" if flat_too else ""
        return f"seeds disagree in {mixed[0]}: it falls in {falling}, rises in {rising}{none}"
    falling_families, rising_families = ([n for n, s in signs.items() if s[0] == sign] for sign in (-1, 1))
    if falling_families and rising_families:
        return (
            f"families disagree: it falls in {' and '.join(falling_families)}, rises in {' and '.join(rising_families)}"
        )
    return None


def _read_contrast(how: ContrastConfig, eps: float | None, rows: Sequence[Row]) -> Reading:
    sides = [
        {
            (row["seed"], row["label"]): _value(row, side.metric or how.metric, how.norm, eps)
            for row in rows
            if row["family"] == side.family and side.label in (None, row["label"])
        }
        for side in (how.of, how.than)
    ]
    reading = Reading(where=sides_text(how))
    if how.of.label is None:
        of, than = sides
    else:
        of, than = ({(seed, ""): value for (seed, _), value in side.items()} for side in sides)
    pairs = {
        key: (first, second) for key, first in of.items() if first is not None and (second := than.get(key)) is not None
    }
    matched: dict[int, list[tuple[float, float]]] = {}
    for (seed, _), pair in sorted(pairs.items()):
        matched.setdefault(seed, []).append(pair)
    reading.seeds = list(matched)
    for side, values in zip((how.of, how.than), sides, strict=True):
        if all(value is None for value in values.values()):
            at = f"{side.family} {side.label or ''}".strip()
            reading.reason = f"{metric_name(side.metric or how.metric)} was not measured in {at}"
            return reading
    if not pairs:
        reading.reason = "no seed has both sides"
        return reading
    means = np.array([np.mean(several, axis=0) for several in matched.values()])
    differences = (means[:, 0] - means[:, 1]).tolist()
    found = paired(differences)
    reading.by_seed, reading.effect, reading.interval = differences, found.mean, found.interval
    reading.p_value, reading.floor, reading.test = found.p_value, found.floor, found.test
    reading.way = means_text(how.metric, *means.mean(axis=0).tolist())
    signs = [sign(difference) for difference in differences]
    if len(signs) < 2:
        reading.reason, reading.floor = "one seed decides nothing", None
    elif not any(signs):
        reading.reason = "there is no difference in any seed"
    elif len(set(signs)) > 1:
        none = f", the same in {signs.count(0)}" if 0 in signs else ""
        reading.reason = f"seeds disagree: higher in {signs.count(1)}, lower in {signs.count(-1)}{none}"
    return reading


def _value(row: Row, metric: str, norm: str | None, eps: float | None) -> float | None:
    """A measure of one model, None where it was not made."""
    if norm is None or metric in row:
        found = row.get(metric)
    elif eps is None:
        found = row.get(f"{metric}_{norm}")
    else:
        curve = row.get(f"curve_{norm}") or []
        point: Row = next((point for point in curve if math.isclose(point["eps"], eps, rel_tol=_SAME)), {})
        if metric == "robust_over_clean":
            clean, robust = row.get("clean_accuracy"), point.get("robust_accuracy")
            found = robust / clean if clean and robust is not None else None
        else:
            found = point.get(metric)
    return None if found is None or not math.isfinite(found) else float(found)


def _levels(how: TrendConfig, eps: float | None, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Label and mean over seeds of every level of one family, where it is known."""
    for _, here in sorted(_grouped(rows, "level").items()):
        mean = _mean(_columns(how, eps, here)[1])
        if mean is not None:
            yield here[0]["label"], mean


def _part(name: str, found: Association) -> Part:
    p_value = found.p_value if len(found.by_seed) > 1 else None
    return Part(family=name, rho=found.coefficient, by_seed=list(found.by_seed.values()), p_value=p_value)


def _grouped(rows: Sequence[Row], key: str) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _interval(by_seed: Sequence[float | None]) -> Interval | None:
    known = np.array([value for value in by_seed if value is not None])
    if len(known) < 2 or len(known) < len(by_seed):
        return None
    return bootstrap(lambda drawn: float(known[drawn].mean()), len(known))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def sign(value: float | None) -> int:
    """-1, 0 or 1; 0 where there is no value."""
    return 0 if not value else 1 if value > 0 else -1


CORRECTIONS: dict[Correction, str] = {"holm": "Holm’s", "benjamini_hochberg": "Benjamini and Hochberg’s"}


def metric_name(metric: str) -> str:
    """A metric as people say it.

    >>> metric_name("clean_accuracy"), metric_name("gap")
    ('clean accuracy', 'the loss gap')
    """
    return METRICS[metric].phrase if metric in METRICS else metric


def p_text(p: float) -> str:
    """A p-value with two digits.

    >>> p_text(0.0345), p_text(0.25), p_text(1e-9)
    ('p = 0.035', 'p = 0.25', 'p < 0.0001')
    """
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def correction_text(tests: int, correction: Correction) -> str:
    """What a corrected p-value has been corrected for."""
    return f" after {CORRECTIONS[correction]} correction over {tests} tests" if tests > 1 else ""


def sides_text(how: ContrastConfig) -> str:
    """Both sides of a contrast.

    >>> of, than = Side(family="a", label="0.5"), Side(family="b", label="0.5")
    >>> sides_text(ContrastConfig(metric="clean_accuracy", expected="higher", of=of, than=than))
    'a 0.5 against b 0.5'
    """
    return f"{_side(how, how.of)} against {_side(how, how.than)}"


def trend_text(metric: str, levels: Iterable[tuple[str, float]]) -> str:
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


def means_text(metric: str, of: float, than: float) -> str:
    """The means over seeds on both sides of a contrast."""
    return f"{_amount(metric, of)} against {_amount(metric, than)}"


def verdict_sentence(
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
    what = f"{metric_name(how.metric)}{under}"
    if isinstance(how, ContrastConfig):
        said, figures = _contrast(how, what, reading)
    else:
        said, figures = _trend(how, what, reading, ruling != "undecided")
    if reading.effect is None:
        return f"Undecided, because {reason}."
    sure = []
    if reading.p_value is not None:
        sure = [p_text(reading.p_value) if p is None else f"{p_text(p)}{correction_text(tests, correction)}"]
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
    return f"{what} {verb} {metric_name(how.against)} in {reading.where}", figures


def _contrast(how: ContrastConfig, what: str, reading: Reading) -> tuple[str, str]:
    effect = reading.effect or 0.0
    share = METRICS[how.metric].is_share
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
    metric = "" if side.metric in (None, how.metric) else f" ({metric_name(side.metric)})"
    return f"{side.family}{label}{metric}"


def _amount(metric: str, value: float) -> str:
    return f"{value:.2f}" if METRICS[metric].is_share or 0.1 <= abs(value) < 10 else f"{value:.3g}"
