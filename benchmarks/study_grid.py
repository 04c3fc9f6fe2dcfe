"""A grid of 36 fully connected networks: trained, measured and attacked by a study, and the way a research script does it.

Cells: nuclear norm x group lasso x seed on MNIST, one hidden layer kept at its Frobenius norm (the paper's motivating
setting), then AutoPGD in l_inf and l_2 with cross-entropy and DLR. The study does all 36 with two workers. The script
(``study_reference``) takes a process a cell and minutes a cell, so some of its 36 are done, two at a time as well; the 27
cells with a nuclear norm and the 9 without are estimated from those of their kind, packed onto the cores without a gap.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
WORKERS = 2
METRICS = ("clean_accuracy", "robust_accuracy_linf", "robust_accuracy_l2")
VIEWS = ("neuron", "spectral")


@dataclass(frozen=True)
class Grid:
    """What both ways are given."""

    data: Path
    hidden: tuple[int, ...] = (400,)
    train_samples: int = 10_000
    test_samples: int = 500
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    nuclear: tuple[float, ...] = (0.0, 5e-3, 1e-2, 5e-2)
    lasso: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    linf: float = 0.05
    l2: float = 1.0
    steps: int = 50

    @property
    def cells(self) -> list[tuple[float, float, int]]:
        """(nuclear norm, group lasso, seed) of every cell."""
        return [(nuclear, lasso, seed) for seed in self.seeds for nuclear in self.nuclear for lasso in self.lasso]

    def study(self) -> dict[str, Any]:
        """The study file."""
        threats = [{"norm": "linf", "eps": self.linf}, {"norm": "l2", "eps": self.l2}]
        return {
            "study": "grid",
            "seeds": list(self.seeds),
            "base": {
                "data": {
                    "name": f"npz:{self.data}",
                    "limit_train": self.train_samples,
                    "limit_test": self.test_samples,
                },
                "model": {"hidden": list(self.hidden)},
                "constant_frobenius": True,
                "train": {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "weight_decay": self.weight_decay,
                    "schedule": "cosine",
                    "patience": self.epochs,  # never stopped: the epoch of lowest validation loss, as the script keeps it
                },
                "device": "cpu",
                "audit": {"stages": ["attack"], "threats": threats, "steps": self.steps},
            },
            "families": [
                {
                    "name": "grid",
                    "view": "spectral",
                    "grid": {"penalty.nuclear_norm": list(self.nuclear), "penalty.group_lasso": list(self.lasso)},
                }
            ],
        }

    def command(self, nuclear: float, lasso: float, seed: int) -> list[str]:
        """The script's command line for one cell."""
        options = {
            "data": self.data,
            "train-samples": self.train_samples,
            "test-samples": self.test_samples,
            "epochs": self.epochs,
            "batch-size": self.batch_size,
            "lr": self.learning_rate,
            "weight-decay": self.weight_decay,
            "nuclear": nuclear,
            "lasso": lasso,
            "linf": self.linf,
            "l2": self.l2,
            "steps": self.steps,
            "art-batch-size": self.test_samples,
            "seed": seed,
        }
        pairs = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        hidden = ["--hidden", *map(str, self.hidden)]
        return [sys.executable, "-m", "benchmarks.study_reference", "--constant-frobenius", *hidden, *pairs]


def grid(folder: Path) -> Grid:
    """MNIST's where PINCHPOINT_DATA has it; else a smaller one on scikit-learn's digits, written into the folder."""
    named = os.environ.get("PINCHPOINT_DATA")
    if named and (Path(named) / "mnist.npz").is_file():
        return Grid((Path(named) / "mnist.npz").resolve())
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None], bunch.target.astype(np.uint8)
    np.savez(folder / "digits.npz", x_train=x[:1400], y_train=y[:1400], x_test=x[1400:], y_test=y[1400:])
    return Grid(folder / "digits.npz", train_samples=1400, test_samples=397, epochs=60, linf=0.1, l2=0.6)


def measured(command: Sequence[str]) -> tuple[str, float, float]:
    """What a process prints last; its seconds on the clock, and of processor with those of its children."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as done:
        assert done.stdout is not None
        printed = done.stdout.read()
        _, status, usage = os.wait4(done.pid, 0)
        done.returncode = os.waitstatus_to_exitcode(status)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:4])} failed")
    return printed.splitlines()[-1], time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def by_script(setting: Grid, cells: Sequence[tuple[float, float, int]]) -> list[Row]:
    """Some cells by the script, two at a time; each with its accuracies and seconds."""

    def one(cell: tuple[float, float, int]) -> Row:
        printed, wall, cpu = measured(setting.command(*cell))
        return {"nuclear": cell[0], "lasso": cell[1], **json.loads(printed), "wall": wall, "cpu": cpu}

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, cells))


def by_study(
    setting: Grid, folder: Path, engine: str = "local", workers: int = WORKERS
) -> tuple[list[Row], float, float]:
    """All cells by a study in a process of its own, imports and all: rows of its summary, seconds, processor seconds."""
    folder.mkdir()
    file = folder / "grid.json"
    file.write_text(json.dumps(setting.study()), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.study_grid", str(file), str(folder / "store"), engine, str(workers)]
    _, wall, cpu = measured(command)
    rows = json.loads((folder / "store" / "summary.json").read_text(encoding="utf-8"))["models"]
    places = [(nuclear, lasso) for nuclear in setting.nuclear for lasso in setting.lasso]
    for row in rows:
        row["nuclear"], row["lasso"] = places[row["level"]]
    return rows, wall, cpu


def beside_one_process(setting: Grid, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Some cells of the grid in one process with one thread, and by Ray with two workers, which starts here."""
    some = replace(setting, nuclear=setting.nuclear[1:3], lasso=setting.lasso[:2])
    rows, alone, _ = by_study(some, folder / "alone", workers=1)
    _, ray, _ = by_study(some, folder / "ray", engine="ray")
    details = {"cells": len(rows), "in_process_seconds": alone, "ray_seconds": ray, "ray_workers": WORKERS}
    return {"ray_two_workers_speedup": alone / ray}, details


def chosen(setting: Grid) -> list[tuple[float, float, int]]:
    """Six cells of the script's: one of each strength of the nuclear norm, two more of the outer ones; seeds in turn.

    In pairs that run side by side, alike in length.
    """
    weak, strong, none, some = setting.nuclear[1], setting.nuclear[-1], setting.lasso[0], setting.lasso[1]
    middle, much = setting.nuclear[-2], setting.lasso[-1]
    levels = [(weak, none), (strong, none), (middle, some), (weak, much), (0.0, none), (0.0, some)]
    return [(*level, setting.seeds[number % len(setting.seeds)]) for number, level in enumerate(levels)]


def compared(
    script: Sequence[Row], study: Sequence[Row], metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Cell by cell, how far the script lies from the study's mean over seeds, beside what seeds alone change.

    ``mean_over_seed_range`` is the mean difference over the mean range of seeds in those cells: 1 and more means that the
    two ways differ by more than seeds do. ``largest_over_seed_range`` is the largest distance over the largest range of
    seeds that any cell of the study shows; it exceeds 1 for one draw in five even where both ways are the same.
    """
    levels: dict[tuple[float, float], list[Row]] = {}
    for row in study:
        levels.setdefault((row["nuclear"], row["lasso"]), []).append(row)
    found = {}
    for metric in metrics:
        values = {level: [row[metric] for row in rows] for level, rows in levels.items()}
        off = [row[metric] - statistics.mean(values[row["nuclear"], row["lasso"]]) for row in script]
        spread = max(max(one) - min(one) for one in values.values())
        mine = [values[row["nuclear"], row["lasso"]] for row in script]
        typical = statistics.mean(max(one) - min(one) for one in mine)
        furthest, mean = max(map(abs, off)), statistics.mean(off)
        found[metric] = {
            "mean_difference": mean,
            "mean_over_seed_range": abs(mean) / typical if typical else math.inf if mean else 0.0,
            "largest_difference": furthest,
            "seed_range": spread,
            "largest_over_seed_range": furthest / spread if spread else math.inf if furthest else 0.0,
        }
    return found


def whole(script: Sequence[Row], cells: Sequence[tuple[float, float, int]], key: str) -> float:
    """What all cells would take, in sum: each the mean of those of its kind, with a nuclear norm or without."""
    return sum(statistics.mean(row[key] for row in script if bool(row["nuclear"]) == bool(cell[0])) for cell in cells)


def contest(setting: Grid, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios, and what they come from. A part of the script's cells goes before the study's, the rest after it."""
    some = chosen(setting)
    script = by_script(setting, some[:WORKERS])
    study, wall, cpu = by_study(setting, folder / "grid")
    script += by_script(setting, some[WORKERS:])
    cells = setting.cells
    expected = whole(script, cells, "wall") / WORKERS
    accuracies = compared(script, study)
    ratios = {
        "grid_speedup_over_reference_way": expected / wall,
        "grid_processor_time_saved": whole(script, cells, "cpu") / cpu,
        "grid_accuracy_gap_over_seed_range": max(one["mean_over_seed_range"] for one in accuracies.values()),
    }
    details = {
        "cells": len(cells),
        "study": {"seconds": wall, "processor_seconds": cpu, "workers": WORKERS, "cells": len(study)},
        "reference": {
            "cells_measured": len(script),
            "cells_estimated_from_them": len(cells),
            "estimated_seconds": expected,
            "estimated_processor_seconds": whole(script, cells, "cpu"),
            "at_a_time": WORKERS,
            "each": script,
        },
        "accuracies": accuracies,
        "compressibility": compared(script, study, VIEWS),
        "setting": {key: value for key, value in vars(setting).items() if key != "data"} | {"data": setting.data.name},
    }
    return ratios, details


def main() -> None:
    """A study file and a store, an engine and its workers: done, and summarised."""
    from pinchpoint.cli.running import engine_of
    from pinchpoint.study import Store, gather, read, run

    file, folder, engine, workers = sys.argv[1:]
    config, store = read(Path(file)), Store(Path(folder))
    failed = run(config, store, engine=engine_of(engine, int(workers), None))
    gather(config, store, failed)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed; the first: {failed[0].reason}")
    print("done")


if __name__ == "__main__":
    main()
