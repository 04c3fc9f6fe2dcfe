"""What penalties cost a training step, and where the fast nuclear norm ends; part of ``benchmarks.train``.

``python -m benchmarks.train_penalties`` prints these figures alone. Sizes and seeds are in the code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import interleaved, ratio, table
from pinchpoint.compress import AlignmentPenalty, GroupLasso, NuclearNorm, Penalty, SpreadControl
from pinchpoint.compress.penalties.polar import PolarMemory
from pinchpoint.data import Dataset, load
from pinchpoint.data.config import DataConfig
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.build import CifarResNetConfig
from pinchpoint.train import TrainConfig, train

Step = Callable[[], None]


def penalty_ratios() -> dict[str, float]:
    """Every figure of this file."""
    return nuclear_price() | nuclear_end() | resnet_prices()


def nuclear_price(rounds: int = 3, width: int = 2000, batch: int = 100) -> dict[str, float]:
    """FCN 3072-w-w-w-10, AdamW: blocks of as many steps as lie between two refreshes, so each holds one of every layer.

    Both regimes of ``polar.PolarMemory`` past the start of training; the dearer counts. (A collapsed tail is really
    refreshed four times less often.) The authors' way, the sum of ``svdvals`` with autograd, is timed once.
    """
    model = build(ModelConfig(hidden=(width, width, width)), (3, 32, 32), 10, seed=0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 3, 32, 32, generator=draw), torch.randint(10, (batch,), generator=draw)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    penalty = NuclearNorm(1e-3)

    def block(remembered: Callable[[Tensor], Tensor] | None) -> Step:
        step = _step(model, x, y, optimizer, penalty if remembered else None)

        def run() -> None:
            if remembered:
                for layer in penalty.touched(model):
                    wide = _wide(layer.matrix.detach())
                    memory = PolarMemory(steps=10 * penalty.refresh, reference=remembered(wide))
                    penalty.memory[layer.name] = memory
            for _ in range(penalty.refresh):
                step()

        return run

    contest = {
        "plain": block(None),
        "full": block(torch.clone),
        "collapsed": block(torch.zeros_like),  # as if the weights had moved by as much as they are large
    }
    seconds = interleaved(contest, rounds, warm_up=False)
    full, collapsed = ratio(seconds, "full", "plain"), ratio(seconds, "collapsed", "plain")
    weights = [layer.matrix.detach().requires_grad_() for layer in penalty.touched(model)]

    def authors() -> None:
        torch.stack([torch.linalg.svdvals(weight).sum() for weight in weights]).sum().backward()

    exact = interleaved({"plain": _step(model, x, y, optimizer, None), "authors": authors}, 1, warm_up=False)
    return {
        "nuclear_step_over_plain_2000": max(full, collapsed),
        "nuclear_full_step_over_plain_2000": full,
        "nuclear_collapsed_step_over_plain_2000": collapsed,
        "nuclear_exact_step_over_plain_2000": 1.0 + ratio(exact, "authors", "plain"),
    }


def nuclear_end(seeds: int = 3, epochs: int = 15) -> dict[str, float]:
    """Where training ends with the fast nuclear norm and with the exact one: the worst layer of the worst seed.

    784-200-200-10 on 6000 images of MNIST (digits where there is no MNIST), AdamW 1e-3 with a cosine, strength 5e-3, the
    last weights. Singular values: ||difference||_2 / ||exact||_2. Loss: of validation, relative.
    """
    data, losses, spectra = _images(), [], []
    config = TrainConfig(epochs=epochs, batch_size=100, patience=None, schedule="cosine")
    for seed in range(seeds):
        ends = []
        for mode in ("exact", "fast"):
            model = build(ModelConfig(hidden=(200, 200)), data.input_shape, data.classes, seed=seed)
            trained = train(model, data, config, seed=seed, penalty=NuclearNorm(5e-3, mode=mode))
            hidden = [part.weight.detach().double() for part in model if isinstance(part, nn.Linear)][:-1]
            ends.append((trained.validation_loss, [torch.linalg.svdvals(weight) for weight in hidden]))
        (loss, sigma), (fast_loss, fast_sigma) = ends
        losses.append(abs(fast_loss / loss - 1.0))
        spectra += [float((ours - exact).norm() / exact.norm()) for ours, exact in zip(fast_sigma, sigma, strict=True)]
    return {"nuclear_spectrum_relative_error": max(spectra), "nuclear_loss_relative_error": max(losses)}


def resnet_prices(rounds: int = 9, batch: int = 128) -> dict[str, float]:
    """Training steps of ResNet-20 with SGD: a penalty's over the plain one."""
    model = build(CifarResNetConfig(depth=20), (3, 32, 32), 10, seed=0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 3, 32, 32, generator=draw), torch.randint(10, (batch,), generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    penalties = {"group_lasso": GroupLasso(1e-3), "spread": SpreadControl(1e-3), "alignment": AlignmentPenalty(1e-3)}
    contest = {"plain": _step(model, x, y, optimizer, None)}
    contest |= {name: _step(model, x, y, optimizer, penalty) for name, penalty in penalties.items()}
    seconds = interleaved(contest, rounds)
    return {f"{name}_step_over_plain": ratio(seconds, name, "plain") for name in penalties}


def _step(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, penalty: Penalty | None) -> Step:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x), y)
        (loss if penalty is None else loss + penalty(model)).backward()
        optimizer.step()

    return step


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _images() -> Dataset:
    folder = os.environ.get("PINCHPOINT_DATA")
    there = bool(folder) and (Path(folder or "") / "mnist.npz").is_file()
    return load(DataConfig(name="mnist", limit_train=6000) if there else DataConfig())


if __name__ == "__main__":
    print(table([("ratio", "measured"), *((name, f"{value:.3g}") for name, value in penalty_ratios().items())]))
