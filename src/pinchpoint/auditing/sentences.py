"""The verdict in three sentences: how compressible, how robust, which layers pinch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pinchpoint.attack import Threat
from pinchpoint.records import (
    Comparison,
    Paired,
    PinchPoint,
    Profile,
    Share,
    ThreatReport,
)
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.utils.numbers import budget

_LEVEL = 0.05


def verdict(clean: Share, threats: Sequence[ThreatReport], profile: Profile, points: Sequence[PinchPoint]) -> list[str]:
    """Three sentences for somebody who has not read the paper."""
    return [_compressible(profile), _robust(clean, threats), pinched(points)]


def _compressible(profile: Profile) -> str:
    if not profile.layers:
        return "No layer could be measured."
    share = round(100 * profile.layers[0].spectral.k / max(1, profile.layers[0].spectral.n))
    how = "strongly" if profile.spectral > 0.8 else "moderately" if profile.spectral > 0.5 else "hardly"
    return (
        f"The network is {how} compressible: on average over its layers, the largest {share}% of the singular values hold "
        f"{profile.spectral:.0%} of their sum, and the largest {share}% of the neurons {profile.neuron:.0%} of the weight."
    )


def _robust(clean: Share, threats: Sequence[ThreatReport]) -> str:
    parts = [
        f"{_percent(threat.robust)} under {NORM_NAMES[threat.norm]} {budget(threat.norm, threat.eps)}"
        for threat in threats
    ]
    left = f"; attacks leave {' and '.join(parts)}" if parts else ""
    certain = [
        f"{threat.certified.value:.0%} ({NORM_NAMES[threat.norm]})"
        for threat in threats
        if threat.certified is not None and threat.certified.count > 0
    ]
    sure = f", of which {' and '.join(certain)} are certain" if certain else ""
    return f"It is right on {_percent(clean)} of {clean.of} samples{left}{sure}."


def pinched(points: Sequence[PinchPoint]) -> str:
    """Which layers pinch, and by how much."""
    if not points:
        return "Which layers pinch could not be measured."
    first = [point for point in points if point.share >= 0.5 * points[0].share][:3]
    names = _joined([point.layer for point in first])
    total = sum(point.share for point in first)
    many = len(first) > 1
    called = "" if any(letter.isalpha() for letter in first[0].layer) else "Layers " if many else "Layer "
    return (
        f"{called}{names} {'pinch' if many else 'pinches'}: {total:.0%} of what attacks gain over random noise on their way "
        "through the network is gained there."
    )


def compared(comparison_rows: Sequence[Paired], first: str, second: str) -> list[str]:
    """What changed, and whether it is more than chance."""
    said = []
    for row in comparison_rows:
        where = (
            "" if row.norm is None or row.eps is None else f" under {NORM_NAMES[row.norm]} {budget(row.norm, row.eps)}"
        )
        what = f"{row.metric.replace('_', ' ').capitalize()}{where}"
        points, low, high = (100 * value for value in (row.difference, row.low, row.high))
        sure = f"95 % interval {low:+.1f} to {high:+.1f}, p = {row.p_value:.2g}"
        if row.p_value < _LEVEL:
            way = "higher" if points > 0 else "lower"
            said.append(f"{what} is {abs(points):.1f} points {way} in {second} than in {first} ({sure}).")
        else:
            said.append(f"{what}: no difference beyond chance ({points:+.1f} points, {sure}).")
        if row.attacks:
            said[-1] += f" Both faced {row.attacks}."
    return said


def faced(attacks: Sequence[tuple[str, ...]]) -> str:
    """What each of these samples faced, counted.

    >>> faced([("AutoPGD (50 steps)",), ("AutoPGD (50 steps)", "quick"), ("AutoPGD (50 steps)", "quick")])
    'AutoPGD (50 steps) and quick on 2 samples, AutoPGD (50 steps) on 1 sample'
    """
    counts = sorted(Counter(tuple(sorted(one)) for one in attacks).items(), key=lambda item: -item[1])
    return ", ".join(f"{_joined(names)} on {count} sample{'s'[: count > 1]}" for names, count in counts)


def comparison(
    first: str, second: str, rows: list[Paired], untested: Sequence[tuple[Threat, str, str]] = ()
) -> Comparison:
    """The record, with its sentences. ``untested`` are threats under which no sample faced the same attacks of both models,
    and what each model faced."""
    said = compared(rows, first, second)
    for threat, one, other in untested:
        what = f"Robust accuracy under {NORM_NAMES[threat.norm]} {budget(threat.norm, threat.eps)}"
        said.append(
            f"{what} is not compared: no sample faced the same attacks of both ({one} for {first}, {other} for {second}); "
            "give more time."
        )
    return Comparison(first=first, second=second, rows=rows, said=said)


def _percent(one: Share) -> str:
    return f"{one.value:.1%} ({one.low:.0%} to {one.high:.0%})"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_WARNINGS = {"bound": "not bounded", "mechanism": "no mechanism", "pictures": "no pictures"}


def not_measured(kind: str, name: str, reason: str) -> str:
    """The warning for a part of a model that is not seen as a linear operator."""
    return f"not measured: {kind} at '{name}' ({reason})"


def not_done(step: str, norm: str, reason: str) -> str:
    """The warning for a step that could not be done."""
    return f"{_WARNINGS.get(step, step)} in {norm}: {reason}"
