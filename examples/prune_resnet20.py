"""Prune a trained CIFAR-10 ResNet-20 in four ways and ask what is left, clean and under attack.

    PINCHPOINT_DATA=FOLDER python examples/prune_resnet20.py --out runs/prune_resnet20

FOLDER holds cifar10.npz and cifar10_resnet20.safetensors. Each model is pruned to 30, 50 and 70 % of its filters (removed
for real), fine-tuned for a short while, and attacked; with ``spread`` the fine-tuning penalises the spread of row norms.
Finished models are kept in OUT/models.jsonl, so an interrupted call goes on; the last line is a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pinchpoint as pp
from pinchpoint.attack import apgd, dlr
from pinchpoint.compress.prune import Pruned, prune
from pinchpoint.data import DataConfig, load
from pinchpoint.models.sources.open_model import open_model
from pinchpoint.recipes.folder import Tuning
from pinchpoint.recipes.recipe import PenaltyConfig, Recipe
from pinchpoint.train import TrainConfig

THREATS = {
    "linf:1/255": pp.Threat("linf", 1 / 255),
    "linf:8/255": pp.Threat("linf", 8 / 255),
    "l2:0.1": pp.Threat("l2", 0.1),
    "l2:0.5": pp.Threat("l2", 0.5),
}
ALLOCATIONS = ("uniform", "global", "residual")
SPREAD = 10.0


def tuning(data: Any, seed: int, spread: float, epochs: int) -> Tuning:
    """Short fine-tuning: SGD from 0.05 along half a cosine, flips and crops."""
    train = TrainConfig(
        epochs=epochs,
        optimizer="sgd",
        learning_rate=0.05,
        weight_decay=5e-4,
        schedule="cosine",
        patience=None,
        augment={"flip": True, "crop": 4},
    )
    return Tuning(Recipe(train=train, penalty=PenaltyConfig(spread=spread)), data, seed)


def judged(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, float]:
    """Clean accuracy, and what AutoPGD with cross-entropy and with DLR leave at each budget."""
    attacks = {
        "ce": lambda m, a, b, t: apgd(m, a, b, t, steps=steps),
        "dlr": lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=dlr),
    }
    with torch.no_grad():
        clean = float((model(x).argmax(1) == y).double().mean())
    return {"clean": clean} | {
        name: pp.robust_accuracy(model, x, y, threat, attacks=attacks).robust_accuracy
        for name, threat in THREATS.items()
    }


def one(
    model: nn.Module, data: Any, ratio: float, allocation: Any, spread: float, seed: int, chosen: Any
) -> dict[str, Any]:
    start = time.perf_counter()
    cut: list[float] = []
    x, y = data.test.tensors(chosen.samples)
    fine = tuning(data, seed, spread, chosen.epochs)

    def fine_tune(smaller: nn.Module, after_step: Any) -> None:
        with torch.no_grad():
            cut.append(float((smaller.eval()(x).argmax(1) == y).double().mean()))
        fine(smaller, after_step)

    pruned: Pruned = prune(model, ratio, input_shape=data.input_shape, allocation=allocation, fine_tune=fine_tune)
    report = pruned.report
    return {
        "ratio": ratio,
        "allocation": allocation,
        "spread": spread,
        "seed": seed,
        "met": report.met,
        "largest residual": max(layer.residual for layer in report.layers),
        "least kept": min(layer.kept / layer.units for layer in report.layers),
        "parameters": report.parameters_after / report.parameters_before,
        "operations": report.flops_after / report.flops_before,
        "cut": cut[0],
        **judged(pruned.model, x, y, chosen.steps),
        "seconds": time.perf_counter() - start,
    }


def shown(rows: list[dict[str, Any]]) -> str:
    """Mean and range over seeds of every kind of model."""
    names = ("cut", "clean", *THREATS)
    lines = ["| filters pruned | allocation | spread control | operations left | " + " | ".join(names) + " |"]
    lines.append("|" + " --- |" * (4 + len(names)))
    kinds = sorted(
        {
            (row["ratio"], ALLOCATIONS.index(row["allocation"]) if row["allocation"] else -1, row["spread"])
            for row in rows
        }
    )
    for ratio, place, spread in kinds:
        same = [
            row
            for row in rows
            if (row["ratio"], row["spread"]) == (ratio, spread)
            and (row["allocation"] or "") == (ALLOCATIONS[place] if place >= 0 else "")
        ]
        cells = [
            f"{ratio:.0%}",
            same[0]["allocation"] or "not pruned",
            f"{spread:g}" if spread else "no",
            f"{same[0]['operations']:.0%}",
        ]
        for name in names:
            values = [100 * row[name] for row in same]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/prune_resnet20"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--train", type=int, default=8000, help="images, 15 % of them for validation")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=200, help="test images attacked")
    parser.add_argument("--steps", type=int, default=10, help="of AutoPGD, for each objective")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = Path(os.environ.get("PINCHPOINT_DATA", "."))
    model = open_model(str(folder / "cifar10_resnet20.safetensors")).model
    data = load(DataConfig(name="cifar10", limit_train=chosen.train))
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = chosen.out / "models.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["ratio"], row["allocation"], row["spread"], row["seed"]) for row in rows}
    plan: list[tuple[float, str, float, int]] = [(0.0, "", 0.0, 0)]
    plan += [
        (ratio, allocation, spread, seed)
        for seed, ratio, allocation, spread in itertools.product(
            chosen.seeds, chosen.ratios, ALLOCATIONS, (0.0, SPREAD)
        )
    ]
    for number, (ratio, allocation, spread, seed) in enumerate(plan, start=1):
        if (ratio, allocation, spread, seed) in done:
            continue
        if allocation:
            row = one(model, data, ratio, allocation, spread, seed, chosen)
        else:
            found = judged(model, *data.test.tensors(chosen.samples), chosen.steps)
            row = {
                "ratio": 0.0,
                "allocation": "",
                "spread": 0.0,
                "seed": 0,
                "operations": 1.0,
                "cut": found["clean"],
                **found,
            }
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        kind = f"{ratio:.0%} {allocation or 'not pruned'}, spread {spread:g}, seed {seed}"
        print(f"{number} of {len(plan)}: {kind}: clean {row['clean']:.1%}", flush=True)
    print(shown(rows))


if __name__ == "__main__":
    main()
