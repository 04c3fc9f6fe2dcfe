"""What a study costs beside its work: planning, finding everything done already, reading a store into the summary.

    python -m benchmarks.study_store plan|read|find N

Each size has a process of its own. Planning is given N levels that differ in one section
and one seed, so that no two cells share what is slow, their validation. Reading is given a store of N records as a study
leaves it: a folder for every stage, records gathered into segments. They are copies of those that one small run left,
under the ids of the study's stages, with other robust accuracies.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import polars

from benchmarks.common import peak_megabytes
from pinchpoint.study import Plan, Stage, Store, StudyConfig, gather, parse, plan, run
from pinchpoint.study.graph.stages import Kind
from pinchpoint.study.store import parquet

SEEDS = 5


def study(levels: int, seeds: int = 1) -> str:
    """A study file of so many levels, a multiple of 100 or below it, along two penalties."""
    across = min(levels, 100)
    content = {
        "study": "synthetic",
        "seeds": list(range(seeds)),
        "base": {
            "data": {"name": "digits", "limit_test": 20},
            "model": {"hidden": [128, 128]},
            "train": {"epochs": 1, "patience": None},
            "device": "cpu",
            "audit": {"stages": ["attack"], "steps": 1, "samples": 10},
        },
        "families": [
            {
                "name": "grid",
                "view": "neuron",
                "grid": {
                    "penalty.nuclear_norm": [number * 1e-6 for number in range(levels // across)],
                    "penalty.group_lasso": [number * 1e-5 for number in range(across)],
                },
            }
        ],
    }
    return json.dumps(content)


Took = tuple[float, float]
"""Seconds on the clock, and of processor."""


def timed(work: Callable[[], object]) -> Took:
    """What a call took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def planning(cells: int, folder: Path) -> Took:
    """From the text of a study file to all its runs and stages."""
    return timed(lambda: plan(parse(study(cells))))


def reading(records: int, folder: Path) -> Took:
    """From a store of about so many records to summary.json and records.parquet."""
    config = parse(study(max(1, round(records / (4 * SEEDS * 100))) * 100, SEEDS))
    store = fill(config, folder)
    return timed(lambda: gather(config, store))


def finding(cells: int, folder: Path, repeats: int = 5) -> Took:
    """A stage's share of running a study again that is finished: the median call."""
    config = parse(study(cells))
    store = fill(config, folder)
    stages = len(plan(config).stages)
    wall, cpu = sorted(timed(lambda: run(config, store)) for _ in range(repeats))[repeats // 2]
    return wall / stages, cpu / stages


def fill(config: StudyConfig, folder: Path) -> Store:
    """A store in which everything is done."""
    seed = parse(study(1))
    pattern = Store(folder / "pattern")
    run(seed, pattern)
    store = Store(folder / "store")
    planned = plan(config)
    for kind in ("train", "profile", "attack"):
        rows = [pattern.table(kind, {name for one, name in plan(seed).stages if one == kind})]
        write(store, kind, rows[0], planned)
    return store


def write(store: Store, kind: Kind, pattern: polars.DataFrame, planned: Plan) -> None:
    """All records of one kind: the pattern's rows in turn, under the ids of the plan."""
    stages = [stage for stage in planned.stages.values() if stage.kind == kind]
    for stage in stages:
        store.folder(stage.key).mkdir(parents=True)
    rows = pattern[[row % len(pattern) for row in range(len(stages))]]
    table = rows.with_columns(own(stages))
    if kind == "attack":
        table = table.with_columns(result=judged(table, stages))
    path = store.root / "segments" / kind / "all.parquet"
    path.parent.mkdir(parents=True)
    parquet.write(table.cast(parquet.schema(kind)), path)


def own(stages: Iterable[Stage]) -> list[polars.Series]:
    """The columns in which records of one kind differ."""
    rows = [(stage.id, stage.digest, [f"{k}/{name}" for k, name in stage.parents], stage.seed) for stage in stages]
    names = ("id", "digest", "parents", "seed")
    return [polars.Series(name, list(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)]


def judged(table: polars.DataFrame, stages: Iterable[Stage]) -> polars.Series:
    """What the attacks found: the stage's own norm, and an accuracy that differs from stage to stage."""
    values = [int(stage.id[:6], 16) / 16**6 for stage in stages]
    norms = [stage.norm for stage in stages]
    return table.select(
        polars.col("result").struct.with_fields(
            norm=polars.Series(norms), robust_accuracy=polars.Series(values, dtype=polars.Float64)
        )
    )["result"]


PARTS = {"plan": planning, "read": reading, "find": finding}


def main() -> None:
    what, size = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = PARTS[what](size, Path(folder))
    found = {"size": size, "seconds": wall, "processor_seconds": cpu, "megabytes": peak_megabytes()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
