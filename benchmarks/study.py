"""What a study costs: a grid of 36 cells beside a research script, its own bookkeeping, and Ray.

    python -m benchmarks.study --json FILE

The parts say what they do: ``study_grid`` and ``study_reference`` for the grid, ``study_store`` for planning, finding and
reading. Everything timed runs in processes of its own with one thread each. With PINCHPOINT_DATA the grid is MNIST's, else
a smaller one of scikit-learn's digits, and the results say which.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import study_grid
from benchmarks.common import machine, table, versions, write

PARTS = ("grid", "store", "ray")
SIZES = (10_000, 30_000, 100_000)
CACHED = 100
LIMITS = {
    "grid_speedup_over_reference_way": "at least 5",
    "grid_accuracy_gap_over_seed_range": "at most 1",
    "cached_stage_ms": "below 5",
    "plan_100k_seconds": "below 10",
    "plan_100k_megabytes": "below 1000",
    "read_100k_seconds": "below 10",
    "ray_two_workers_speedup": "at least 1.6",
}
NEEDS = {"grid": ("art", "pip install adversarial-robustness-toolbox"), "ray": ("ray", "pip install 'pinchpoint[ray]'")}


def bookkeeping(sizes: Sequence[int] = SIZES, cached: int = CACHED) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures at the last size, and how they grow."""

    def once(what: str, size: int) -> dict[str, Any]:
        printed, _, _ = study_grid.measured([sys.executable, "-m", "benchmarks.study_store", what, str(size)])
        found: dict[str, Any] = json.loads(printed)
        return found

    planned, read = [once("plan", size) for size in sizes], [once("read", size) for size in sizes]
    name = f"{sizes[-1] // 1000}k"
    ratios = {
        "cached_stage_ms": 1e3 * once("find", cached)["seconds"],
        f"plan_{name}_seconds": planned[-1]["seconds"],
        f"plan_{name}_megabytes": planned[-1]["megabytes"],
        f"read_{name}_seconds": read[-1]["seconds"],
        f"read_{name}_megabytes": read[-1]["megabytes"],
    }
    return ratios, {"plan": planned, "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios, growth, machine and versions here")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to measure; all of them")
    chosen = parser.parse_args()
    start, before = time.perf_counter(), machine()
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    for part in chosen.only:
        module, remedy = NEEDS.get(part, ("pinchpoint", ""))
        if importlib.util.find_spec(module) is None:
            print(f"left out: {part}, which needs {module}: {remedy}")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "store":
                figures, details["growth"] = bookkeeping()
            elif part == "grid":
                figures, details["grid"] = study_grid.contest(study_grid.grid(folder), folder)
            else:
                figures, details["ray"] = study_grid.beside_one_process(study_grid.grid(folder), folder)
        ratios |= figures
    results = {
        "ratios": ratios,
        "limits": LIMITS,
        **details,
        "machine": before | {"threads": 1},
        "versions": versions("torch", "numpy", "polars", "pydantic"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(table([("figure", "measured", "wanted"), *((k, f"{v:.3g}", LIMITS.get(k, "")) for k, v in ratios.items())]))
    print(f"{results['seconds']} s on {results['machine']}")
    write(chosen.json, results)


if __name__ == "__main__":
    main()
