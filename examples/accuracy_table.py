"""Clean and robust accuracy of every kind of model of a study, over its seeds, as a Markdown table.

A third argument names a JSON file for the curves, which ``python -m benchmarks.figures`` draws.

    pinchpoint study run src/pinchpoint/study/paper/cifar_fcn.yaml --out runs/cifar_fcn
    python examples/accuracy_table.py src/pinchpoint/study/paper/cifar_fcn.yaml runs/cifar_fcn
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from pinchpoint.records import Run
from pinchpoint.study import Store, StudyConfig, read

Runs = dict[str, list[dict[str, float]]]


def column(norm: str, eps: float) -> str:
    """What a budget is called."""
    return f"{norm} {255 * eps:.0f}/255" if norm == "linf" else f"{norm} {eps:g}"


def cells(run: Run) -> dict[str, float]:
    """Clean accuracy; what is left at each budget; and its share of the clean accuracy at the judged one. In per cent."""
    found = {"clean": run.audit.clean_accuracy}
    for threat in run.audit.robustness:
        for point in threat.curve:
            found[column(threat.norm, point.eps)] = point.robust_accuracy
        found[f"{threat.norm} robust/clean"] = threat.robust_over_clean or 0.0
    return {name: 100.0 * value for name, value in found.items()}


def write_curves(path: Path, study: StudyConfig, runs: Runs, budgets: dict[str, list[tuple[float, str]]]) -> None:
    """Mean, smallest and largest accuracy at each budget, by norm and model."""

    def over_seeds(name: str, seeds: list[dict[str, float]]) -> list[float]:
        values = [one[name] for one in seeds]
        return [statistics.mean(values), min(values), max(values)]

    curves = {
        norm: {kind: [[eps, *over_seeds(name, seeds)] for eps, name in points] for kind, seeds in runs.items()}
        for norm, points in budgets.items()
    }
    content = {"study": study.study, "title": study.title, "curves": curves}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    study, store = read(Path(sys.argv[1])), Store(Path(sys.argv[2]))
    runs: Runs = {}
    budgets: dict[str, list[tuple[float, str]]] = {}
    for task in study.plan():
        if store.has(task.id):
            member = task.members[0]
            named = member.label if member.label == "plain" else f"{member.family} {member.label}".replace("_", " ")
            run = store.load(task.id)
            runs.setdefault(named, []).append(cells(run))
            for threat in run.audit.robustness:
                budgets[threat.norm] = [(0.0, "clean"), *((p.eps, column(threat.norm, p.eps)) for p in threat.curve)]
    names = list(next(iter(runs.values()))[0])
    print("| model | seeds | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * (1 + len(names)))
    for kind, seeds in runs.items():
        shown = []
        for name in names:
            values = [one[name] for one in seeds]
            shown.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {kind} | {len(seeds)} | " + " | ".join(shown) + " |")
    if len(sys.argv) > 3:
        write_curves(Path(sys.argv[3]), study, runs, budgets)


if __name__ == "__main__":
    main()
