"""What became of the samples under attack: one table a threat, and the curve as a picture."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from pinchpoint.records import Attacked, AttackSheet, CurvePoint
from pinchpoint.report.terminal.text import wrapped

_BAR = 34
"""Characters of a bar that stands for all samples."""

_MEANS = {
    "clean": "wrong without attack",
    "certified": "no attack can succeed",
    "survived": "no attack succeeded",
}


def attack_parts(sheet: AttackSheet, width: int) -> Iterator[Table | str]:
    """Accuracy without attack, then each threat: what is left, what settled how many, the curve, and warnings."""
    yield f"without attack: accuracy {sheet.clean_accuracy:.1%}"
    if sheet.fitted_on is not None:
        yield f"the perturbation is fitted on {sheet.fitted_on} training samples"
    for attacked in sheet.threats:
        yield (
            f"\n{attacked.norm} {attacked.eps:.4g}: robust accuracy {attacked.robust_accuracy:.1%} "
            f"(95 % interval {attacked.robust_low:.1%} to {attacked.robust_high:.1%}; {attacked.seconds:.1f} s)"
        )
        yield _stages(attacked, sheet.samples)
        if attacked.curve:
            yield "robust accuracy up to each budget, by a search for the smallest that flips each sample"
            yield from (_bar(point) for point in attacked.curve)
        if attacked.certified_accuracy is not None:
            yield f"certified accuracy {attacked.certified_accuracy:.1%}"
            if attacked.certified_attacked:
                yield f"{attacked.certified_attacked} certified samples were attacked all the same, and none fell"
        if attacked.rejected:
            yield wrapped(f"{attacked.rejected} examples fooled the model outside ball or box and do not count", width)
        for warning in attacked.warnings:
            yield wrapped(f"warning: {warning}", width)
        if attacked.examples is not None:
            yield f"examples: {attacked.examples}"


def _stages(attacked: Attacked, samples: int) -> Table:
    """What settled how many, in the order of the stages."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("settled by")
    for heading in ("samples", "share", "left"):
        table.add_column(heading, justify="right")
    table.add_column("")
    settled, left = attacked.settled, samples
    named = [name for name in settled if name not in _MEANS]
    for name in ("clean", "certified", *named, "survived"):
        count = settled.get(name, 0)
        if count == 0 and name in ("clean", "certified"):
            continue
        left -= count if name not in ("certified", "survived") else 0
        table.add_row(name, str(count), f"{count / samples:.1%}", str(left), _MEANS.get(name, ""))
    return table


def _bar(point: CurvePoint) -> str:
    """One budget: the certified share solid, what attacks left lighter."""
    standing = round(point.robust_accuracy * _BAR)
    certified = min(round((point.certified_accuracy or 0.0) * _BAR), standing)
    picture = "█" * certified + ("▒" if certified else "█") * (standing - certified)
    return f"  {point.eps:<10.4g}{picture:<{_BAR}} {point.robust_accuracy:6.1%}"
