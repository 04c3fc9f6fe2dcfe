"""What became of the paper's claims, as one Markdown page: verdicts first, then study by study what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pinchpoint.records import Family, Level, Summary, Verdict
from pinchpoint.report.formatting import finite, written
from pinchpoint.report.study import verdicts as told
from pinchpoint.report.study.print import SIGNS
from pinchpoint.utils.numbers import budget

_HEAD = """# Results

This page is made from the records of the studies by `{command}`; nothing in it is written by hand. **Supported** means that
{supported}; **opposite** that {opposite}; **undecided** is {undecided}.
Trends are tested by the order of levels within seeds (Page's test, exact), contrasts by a paired t over seeds. Everything
speaks of other seeds of the same training on the same test samples, at the sizes given here.
"""


@dataclass(frozen=True)
class Entry:
    """One study and what came of it: ``seconds`` of wall time, ``figures`` by family, as the page links them."""

    name: str
    title: str
    paper: str
    about: str
    scale: str
    summary: Summary
    command: str
    seconds: float | None
    machine: str
    figures: Mapping[str, str] = field(default_factory=dict)


def page(entries: Sequence[Entry], command: str) -> str:
    """The page docs/results.md.

    Args:
        entries: in the order in which the page shows them.
        command: that makes the page.
    """
    blocks = [_HEAD.format(command=command, **told.RULINGS)]
    if any(entry.summary.verdicts for entry in entries):
        verdicts = [verdict for entry in entries for verdict in entry.summary.verdicts]
        blocks += ["## All claims", told.counted(verdicts), _overview(entries)]
    blocks += [block for entry in entries for block in _entry(entry)]
    return "\n\n".join(block.strip() for block in blocks if block.strip()) + "\n"


def _overview(entries: Sequence[Entry]) -> str:
    """One row a claim; a claim judged at several budgets says at which it was what."""
    rows = []
    for entry in entries:
        for verdicts in told.by_claim(entry.summary.verdicts):
            first = verdicts[0]
            rows.append(
                (
                    f"[{cell(entry.name)}](#{anchor(entry)})",
                    cell(first.says) + (f" ({cell(first.paper)})" if first.paper else ""),
                    _ruled(verdicts),
                    _range([told.effect(verdict) for verdict in verdicts]),
                    _range([told.chance(verdict.p_corrected) for verdict in verdicts]),
                )
            )
    return table(("study", "claim", "verdict", "effect", "p, corrected"), rows)


def _entry(entry: Entry) -> Iterator[str]:
    summary = entry.summary
    seeds = {row["seed"] for row in summary.models}
    models = len({(row["run"], row["seed"]) for row in summary.models})
    yield f"## {cell(entry.title or entry.name)}"
    yield f"Paper: {cell(entry.paper or 'not there')}. Scale: {cell(entry.scale)}."
    yield entry.about.strip()
    for verdicts in told.by_claim(entry.summary.verdicts):
        first = verdicts[0]
        yield f"**{cell(first.says)}**" + (f" ({cell(first.paper)})" if first.paper else "")
        yield cell(first.sentence) if len(verdicts) == 1 else _over_budgets(verdicts)
    for family in summary.families:
        yield f"### {cell(family.title)}"
        yield _measured(entry, family)
        if family.name in entry.figures:
            yield f"![{cell(family.title)}]({entry.figures[family.name]})"
    yield "\n".join(f"- {cell(note)}" for note in summary.notes)
    took = "" if entry.seconds is None else f", {duration(entry.seconds)}"
    seeds_told = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
    yield f"```console\n$ {entry.command}\n```"
    yield f"{models} models, {seeds_told}{took}; {cell(entry.machine)}."


def _over_budgets(verdicts: Sequence[Verdict]) -> str:
    """A claim about a whole curve, a row a budget."""
    norm = verdicts[0].norm or ""
    rows = [
        (
            budget(norm, verdict.eps),
            f"**{verdict.ruling}**",
            told.effect(verdict) or "–",
            _range([None if value is None else f"{value:+.2f}" for value in sorted(verdict.by_seed, key=_first)]),
            told.chance(verdict.p_corrected) or "–",
            cell(verdict.reason or ""),
        )
        for verdict in verdicts
    ]
    heads = (f"{SIGNS[norm]} budget", "verdict", "effect", "by seed", "p, corrected", "why undecided")
    return f"{cell(verdicts[0].where)}, {verdicts[0].test}:\n\n{table(heads, rows)}"


def _first(value: float | None) -> float:
    return 0.0 if value is None else value


def _measured(entry: Entry, family: Family) -> str:
    """Means and standard deviations over seeds: what the claims speak of, and accuracies at the judged budgets."""
    keys = ["compressibility", "clean_accuracy", *(f"robust_accuracy_{norm}" for norm in SIGNS)]
    spoken = [
        verdict.metric if verdict.norm is None else f"{verdict.metric}_{verdict.norm}"
        for verdict in entry.summary.verdicts
    ]
    known = {key for level in family.levels for key, value in level.mean.items() if finite(value) is not None}
    columns = [key for key in dict.fromkeys([*keys, *spoken]) if key in known]
    heads = ["level", *(_head(entry, key) for key in columns)]
    return table(heads, [(cell(level.label), *(_mean(level, key) for key in columns)) for level in family.levels])


def _head(entry: Entry, key: str) -> str:
    metric, _, norm = key.rpartition("_")
    if norm not in SIGNS:
        return key.replace("_", " ")
    names = (f"universal_eps_{norm}", f"eps_{norm}") if metric == "universal_accuracy" else (f"eps_{norm}",)
    eps = next((row[name] for row in entry.summary.models for name in names if row.get(name) is not None), None)
    return f"{metric.replace('_', ' ')}, {SIGNS[norm]} {budget(norm, eps)}".strip()


def _mean(level: Level, key: str) -> str:
    mean, std = finite(level.mean.get(key)), finite(level.std.get(key))
    return written(mean) + (f" ± {written(std)}" if mean is not None and std is not None else "")


def _ruled(verdicts: Sequence[Verdict]) -> str:
    if len({verdict.ruling for verdict in verdicts}) == 1:
        everywhere = f" at all {len(verdicts)} budgets" if len(verdicts) > 1 else ""
        return f"**{verdicts[0].ruling}**{everywhere}"
    return "; ".join(f"**{ruling}** at {at}" for ruling, at in told.budgets(verdicts).items())


def _range(values: Sequence[str | None]) -> str:
    """What all share, or the first and last of several."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return known[0] if len(set(known)) == 1 else f"{known[0]} … {known[-1]}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(words: str) -> str:
    """Text that stays what it is in a Markdown line or table cell.

    >>> cell("a|b <i> *c*")
    'a\\\\|b &lt;i> \\\\*c\\\\*'
    """
    return re.sub(r"([|*`\\\[\]])", r"\\\1", " ".join(words.split())).replace("<", "&lt;")


def anchor(entry: Entry) -> str:
    """Where GitHub's headings can be linked to.

    >>> from pinchpoint.report.study.results import re
    >>> re.sub(r"[^\\w\\- ]", "", "Does it fall? CIFAR-10".lower()).replace(" ", "-")
    'does-it-fall-cifar-10'
    """
    return re.sub(r"[^\w\- ]", "", (entry.title or entry.name).lower()).replace(" ", "-")


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42.3), duration(95), duration(7380)
    ('42 s', '1 min 35 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
