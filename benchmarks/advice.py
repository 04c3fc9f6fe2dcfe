"""What following advice brings: how much of the gain that the rule allows for is reached, beyond fine-tuning alone.

    python -m benchmarks.advice --json FILE

Small networks on scikit-learn's digits, and on MNIST where PINCHPOINT_DATA has it: plain, of low rank, trained with a
nuclear norm or a group lasso, three seeds each. Each is audited, and its first advice tried (``pinchpoint audit --try``).
The share is the slope of the least-squares line through zero, from what the rule allows for to what was measured less what
fine-tuning alone leads to; its interval comes from resampling the kinds of network.
``pinchpoint.auditing.prediction.REACHED`` is this share, rounded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pinchpoint
from benchmarks.common import machine, table, versions, write
from pinchpoint.auditing.prediction import REACHED
from pinchpoint.data import load
from pinchpoint.recipes.recipe import Recipe, make
from pinchpoint.train.parallel import Alone

SEEDS = (0, 1, 2)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 4": {"model": {"rank": 4}},
    "rank 8": {"model": {"rank": 8}},
    "nuclear norm": {"penalty": {"nuclear_norm": 0.01}},
    "group lasso": {"penalty": {"group_lasso": 0.003}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"data": {"name": "digits"}, "hidden": [128, 128], "epochs": 30, "threats": ["linf:0.08", "l2:0.45"]},
    "mnist": {
        "data": {"name": "mnist", "limit_train": 5000},
        "hidden": [200, 200],
        "epochs": 10,
        "threats": ["linf:0.05", "l2:1"],
    },
}
SAMPLES = 400
DRAWS = 10_000


def tried(name: str, kind: str, seed: int) -> list[dict[str, Any]]:
    """One network audited and its advice followed: a row for each robust accuracy that was predicted."""
    setting, changes = SETTINGS[name], KINDS[kind]
    recipe = Recipe.model_validate(
        {
            "data": setting["data"],
            "model": {"hidden": setting["hidden"], **changes.get("model", {})},
            "penalty": changes.get("penalty", {}),
            "train": {"epochs": setting["epochs"], "learning_rate": 0.003, "schedule": "cosine"},
            "device": "cpu",
        }
    )
    data = load(recipe.data)
    model, _ = make(recipe, data, seed=seed, engine=Alone(torch.device("cpu")))
    report = pinchpoint.audit(
        model, data, setting["threats"], samples=SAMPLES, standard=False, seed=seed, try_advice=True, device="cpu"
    )
    return [
        {
            "data": name,
            "kind": kind,
            "seed": seed,
            "advice": report.trial.advice,
            "norm": one.norm,
            "eps": one.eps,
            "before": one.before,
            "allowed": (one.predicted - one.before) / REACHED,
            "gained": one.measured - one.alone,
            "tuning": one.alone - one.before,
            "held": one.held,
        }
        for one in (report.trial.outcomes if report.trial else ())
        if one.metric == "robust_accuracy" and one.alone is not None
    ]


def slope(rows: Sequence[dict[str, Any]]) -> float:
    """Of the line through zero."""
    x, y = (np.array([row[key] for row in rows]) for key in ("allowed", "gained"))
    return float(x @ y / (x @ x)) if len(rows) and (x @ x) > 0 else float("nan")


def interval(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Of the slope, 95 %: kinds of network are drawn again, with all their rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["kind"]), []).append(row)
    parts, draw = list(groups.values()), np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        chosen = draw.integers(len(parts), size=len(parts))
        found.append(slope([row for place in chosen for row in parts[place]]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    named = os.environ.get("PINCHPOINT_DATA")
    names = ["digits", "mnist"] if named and (Path(named) / "mnist.npz").is_file() else ["digits"]
    rows = []
    for name in names:
        for kind in KINDS:
            for seed in SEEDS:
                before = len(rows)
                rows += tried(name, kind, seed)
                print(f"{name}, {kind}, seed {seed}: {len(rows) - before} predictions", flush=True)
    low, high = interval(rows)
    shown = [["network", "allowed", "gained", "by tuning", "held"]]
    for name in names:
        for kind in KINDS:
            mine = [row for row in rows if (row["data"], row["kind"]) == (name, kind)]
            if mine:
                means = [
                    f"{100 * float(np.mean([row[key] for row in mine])):+.1f}"
                    for key in ("allowed", "gained", "tuning")
                ]
                shown.append([f"{name}, {kind}", *means, f"{sum(row['held'] for row in mine)} of {len(mine)}"])
    print(table(shown))
    print(
        f"reached {slope(rows):.2f} of what the rule allows for (95 %: {low:.2f} to {high:.2f}), {len(rows)} predictions"
    )
    ratios = {
        "reached": slope(rows),
        "reached_low": low,
        "reached_high": high,
        "held": float(np.mean([r["held"] for r in rows])),
    }
    about = {"machine": machine(), "versions": versions("torch", "numpy"), "rows": rows}
    write(asked.json, {"ratios": ratios, **about})


if __name__ == "__main__":
    main()
