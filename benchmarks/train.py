"""What training costs beside the bare minimum: the loop, penalties, adversarial steps.

    python -m benchmarks.train --json FILE

Every ratio compares contestants that take turns in one process; a figure is the median over rounds. Sizes and seeds are in
the code. ``--threads N`` sets torch's threads (default: as many as cores).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import interleaved, machine, ratio, table, versions, write
from benchmarks.train_penalties import penalty_ratios
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.data import Dataset
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.build import CifarResNetConfig
from pinchpoint.recipes.adversarial import AdversarialConfig, training_attack
from pinchpoint.train import TrainConfig, train

LIMITS = {
    "nuclear_step_over_plain_2000": "at most 2",
    "nuclear_exact_step_over_plain_2000": "about 100",
    "nuclear_spectrum_relative_error": "at most 0.02",
    "nuclear_loss_relative_error": "at most 0.02",
    "group_lasso_step_over_plain": "at most 1.1",
    "spread_step_over_plain": "at most 1.1",
    "alignment_step_over_plain": "at most 1.5",
    "fcn_rate_over_raw": "at least 0.9",
    "fcn_rate_with_validation_over_raw": "none set",
    "pgd10_step_over_limit": "at most 1.05",
}


def noise(samples: int, shape: tuple[int, ...], validation: int) -> Dataset:
    """Random images and labels in memory: what is timed does not depend on what they show."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(samples + validation + 1, *shape, generator=draw)
    y = torch.randint(10, (len(x),), generator=draw)
    last = samples + validation
    return Dataset("noise", 10, x[:samples], y[:samples], x[samples:last], y[samples:last], x[last:], y[last:])


def loop_rates(rounds: int, epochs: int = 2, batch: int = 128) -> dict[str, float]:
    """An FCN 784-400-400-10 trained from memory by our loop, and by forward, backward and update alone on the same batches.

    The validation part is as small as it may be for the rate of training steps; the second rate counts validation on 15 %
    of the images, as the default split has it.
    """
    small, usual = noise(10_240, (1, 28, 28), 1), noise(10_240, (1, 28, 28), 1_807)

    def network() -> nn.Module:
        return build(ModelConfig(hidden=(400, 400)), (1, 28, 28), 10, seed=0)

    def ours(data: Dataset) -> None:
        train(network(), data, TrainConfig(epochs=epochs, batch_size=batch, patience=None), seed=0)

    def raw() -> None:
        model = network().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        batches = list(zip(small.x_train.split(batch), small.y_train.split(batch), strict=True))
        for x, y in itertools.chain.from_iterable(itertools.repeat(batches, epochs)):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    contest: dict[str, Callable[[], object]] = {
        "raw": raw,
        "ours": lambda: ours(small),
        "with validation": lambda: ours(usual),
    }
    seconds = interleaved(contest, rounds)
    return {
        "fcn_rate_over_raw": ratio(seconds, "raw", "ours"),
        "fcn_rate_with_validation_over_raw": ratio(seconds, "raw", "with validation"),
    }


def adversarial_ratio(rounds: int, batch: int = 64, batches: int = 2) -> dict[str, float]:
    """PGD-10 adversarial training of ResNet-20, all of each batch attacked, over 10 input gradients and one training step.

    Input gradients and the plain step are timed by themselves, on the same batches and weights.
    """
    data = noise(batch * batches, (3, 32, 32), 1)
    attack = training_attack(AdversarialConfig(steps=10))
    config = TrainConfig(
        epochs=1, batch_size=batch, patience=None, adversarial_share=1.0, optimizer="sgd", learning_rate=1e-3
    )
    model = build(CifarResNetConfig(depth=20), (3, 32, 32), 10, seed=0)

    def gradients() -> None:
        with eval_mode(model):
            for x, y in zip(data.x_train.split(batch), data.y_train.split(batch), strict=True):
                for _ in range(10):
                    point = x.clone().requires_grad_(True)
                    torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)

    def step() -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-2)
        for x, y in zip(data.x_train.split(batch), data.y_train.split(batch), strict=True):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    def ours() -> None:
        train(model, data, config, seed=0, attack=attack)

    def limit() -> None:
        gradients()
        step()

    seconds = interleaved({"ours": ours, "limit": limit}, rounds)
    return {"pgd10_step_over_limit": ratio(seconds, "ours", "limit")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios, machine and versions here")
    parser.add_argument("--threads", type=int, help="of torch")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    start = time.perf_counter()
    ratios = loop_rates(9) | adversarial_ratio(5) | penalty_ratios()
    results: dict[str, Any] = {
        "ratios": ratios,
        "limits": LIMITS,
        "machine": machine(),
        "versions": versions("torch", "numpy"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(table([("ratio", "measured", "wanted"), *((k, f"{v:.3g}", LIMITS.get(k, "")) for k, v in ratios.items())]))
    print(f"{results['seconds']} s on {results['machine']}")
    write(chosen.json, results)


if __name__ == "__main__":
    main()
