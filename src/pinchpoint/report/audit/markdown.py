"""The same report as Markdown, for pull requests and terminals; tables, no figures."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pinchpoint.records import Advice, AuditReport
from pinchpoint.report.audit import tables
from pinchpoint.report.audit import text as words
from pinchpoint.report.audit.page import VERDICT, facts, general, points, warnings
from pinchpoint.report.audit.tables import Cell, Table
from pinchpoint.report.audit.terms import TERMS, docs

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!&])")


def escaped(text: object) -> str:
    """Text that Markdown and HTML within it show as it is, on one line.

    >>> escaped("<b>a_b</b>")
    '\\\\<b\\\\>a\\\\_b\\\\</b\\\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def fenced(command: str) -> list[str]:
    """A command as a block; its fence is longer than any within it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return [f"{fence}console", command, fence]


def table(shown: Table) -> list[str]:
    """A table of pipes: the name to the left, numbers to the right.

    >>> from pinchpoint.report.audit.tables import Head
    >>> table(Table("t", "", [Head("a"), Head("b")], [[Cell("x"), Cell("1", 1.0)]]))
    ['| a | b |', '| --- | ---: |', '| x | 1 |']
    """
    lines = [_row(escaped(head.text) for head in shown.heads), _row(["---", *["---:"] * (len(shown.heads) - 1)])]
    return lines + [_row(_cell(cell) for cell in row) for row in shown.rows]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    small = f" ({escaped(cell.small)})" if cell.small else ""
    return escaped(cell.text) + small


def _advice(number: int, item: Advice, rank: str) -> list[str]:
    lines = [f"{rank} {number}. {escaped(item.title)}", "", escaped(item.because), ""]
    if item.command:
        lines += [*fenced(item.command), ""]
    if item.predicted:
        lines += [*table(tables.predicted(item)), ""]
    return lines


def text(report: AuditReport) -> str:
    """The report as Markdown, in the order of the page."""
    lines = [f"# {escaped(report.title)}", "", escaped(" · ".join(facts(report))), "", "## Verdict", ""]
    asked = [*VERDICT, *[""] * len(report.verdict)]
    for place, (asks, sentence) in enumerate(zip(asked, report.verdict, strict=False), 1):
        lines.append(f"{place}. " + (f"**{asks}.** " if asks else "") + escaped(sentence))
    lines += ["", "## Accuracy, with and without attack", "", *table(tables.accuracies(report)), ""]
    for threat in report.threats:
        lines += [f"### {escaped(words.threat(threat.norm, threat.eps))}", "", *table(tables.settled(threat)), ""]
        if threat.curve:
            lines += [*table(tables.curve(threat)), ""]
    lines += _pinch(report)
    if report.trial:
        lines += ["## The advice, tried", "", escaped(report.trial.said), "", *table(tables.trial(report.trial)), ""]
    if report.comparison:
        both = report.comparison
        lines += ["## Two models compared", "", f"First: {escaped(both.first)}. Second: {escaped(both.second)}.", ""]
        lines += [*(f"- {escaped(line)}" for line in both.said), "", *table(tables.compared(both)), ""]
    found = warnings(report)
    lines += ["## Warnings", "", *([f"- {escaped(line)}" for line in found] or ["None."]), ""]
    return "\n".join(lines + _repeat(report))


def _pinch(report: AuditReport) -> list[str]:
    lines = ["## Pinch points: which layers to treat", ""]
    found = points(report)
    if found:
        lines += [*table(tables.pinch_points(report.pinch_points)), ""]
    for one in found:
        if not one["advice"] and not one["again"]:
            continue
        point = one["point"]
        lines += [f"### {point.rank}. {escaped(point.layer)}: {words.percent(point.share)} of the risk", ""]
        lines += [escaped(point.why), ""]
        for number, item in one["advice"]:
            lines += _advice(number, item, "####")
        if one["again"]:
            again = "; ".join(f"{number}. {escaped(item.title)}" for number, item in one["again"])
            lines += [f"Also: {again}.", ""]
    whole = general(report)
    if whole:
        lines += ["### For the model as a whole", ""]
        for number, item in whole:
            lines += _advice(number, item, "####")
    return lines


def _repeat(report: AuditReport) -> list[str]:
    lines = ["## How to repeat this", "", *fenced(report.command), ""]
    subject = report.subject
    lines += [
        f"- model: {escaped(subject.name)}",
        f"- normalisation: {escaped(subject.normalisation)}",
        *(f"- assumed: {escaped(line)}" for line in subject.notes),
        f"- data: {escaped(report.data.name)}, the first {report.data.count} of {report.data.of} samples",
        f"- seed: {report.seed}",
        f"- machine: {escaped(report.machine)}",
        *(f"- {escaped(name)}: {escaped(version)}" for name, version in report.versions.items()),
        "",
        "## Glossary",
        "",
    ]
    for key, term in TERMS.items():
        equation = f" `{term.equation}`" if term.equation else ""
        more = f" ([more]({docs(key)}))" if docs(key) else ""
        lines.append(f"- **{escaped(term.name)}**: {escaped(term.meaning)}{equation}{more}")
    return [*lines, ""]
