"""Clean and robust accuracy of every kind of model of a study, over its seeds, as a Markdown table.

pinchpoint study run src/pinchpoint/study/paper/cifar_fcn.yaml --out runs/cifar_fcn
python examples/accuracy_table.py src/pinchpoint/study/paper/cifar_fcn.yaml runs/cifar_fcn
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from pinchpoint.records import Run
from pinchpoint.study import Store, read


def cells(run: Run) -> dict[str, float]:
    """Clean accuracy; what is left at each budget; and its share of the clean accuracy at the judged one. In per cent."""
    found = {"clean": run.audit.clean_accuracy}
    for threat in run.audit.robustness:
        for point in threat.curve:
            eps = f"{255 * point.eps:.0f}/255" if threat.norm == "linf" else f"{point.eps:g}"
            found[f"{threat.norm} {eps}"] = point.robust_accuracy
        found[f"{threat.norm} robust/clean"] = threat.robust_over_clean or 0.0
    return {name: 100.0 * value for name, value in found.items()}


def main() -> None:
    study, store = read(Path(sys.argv[1])), Store(Path(sys.argv[2]))
    runs: dict[str, list[dict[str, float]]] = {}
    for task in study.plan():
        if store.has(task.id):
            named = f"{task.members[0].family} {task.members[0].label}"
            runs.setdefault(named, []).append(cells(store.load(task.id)))
    names = list(next(iter(runs.values()))[0])
    print("| model | seeds | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * (1 + len(names)))
    for kind, seeds in runs.items():
        shown = []
        for name in names:
            values = [one[name] for one in seeds]
            shown.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {kind} | {len(seeds)} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
