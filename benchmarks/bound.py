"""How tight certified constants are, and what they cost: ``python -m benchmarks.bound --json FILE``.

A 784-256-128-10 ReLU network at random (seed 0), trained, and trained with group lasso, beside eclipse-nn's ECLipsE-Fast on
the same weights; constants to margins; alignment of large layers; growth with width. MNIST where PINCHPOINT_DATA names
a folder with mnist.npz, else scikit-learn's digits enlarged to 28 x 28; the results say which.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.common import arguments, machine, table, versions, write
from pinchpoint.attack.pgd import pgd
from pinchpoint.attack.threat import Threat
from pinchpoint.bound import (
    alignment,
    certified_accuracy,
    encoder,
    gap_bound,
    lipschitz,
    margins,
    radii_from_margins,
    trace,
)
from pinchpoint.bound.certificates import dual_differences
from pinchpoint.bound.methods.ellipsoid import Step, ellipsoid_bound
from pinchpoint.bound.methods.product import items_of, propagate
from pinchpoint.compress import GroupLasso
from pinchpoint.data import DataConfig, load
from pinchpoint.data.load import Dataset
from pinchpoint.records import Norm
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.validation import loss_and_accuracy

SIZES = (784, 256, 128, 10)
WIDTHS = (64, 128, 256, 512, 1024)
NETWORKS = {"random": "random weights", "trained": "trained", "group lasso": "trained with group lasso 3e-3"}
ORDER = ("product", "fast", "eclipse-nn, ECLipsE_Fast", "first-order", "ascent", "sampled")
_T = TypeVar("_T")


def timed(call: Callable[..., _T], *args: Any, **options: Any) -> tuple[_T, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    result = call(*args, **options)
    return result, time.perf_counter() - start


def images() -> Dataset:
    """MNIST, or digits at the same size."""
    folder = os.environ.get("PINCHPOINT_DATA")
    if folder and (Path(folder) / "mnist.npz").is_file():
        return load(DataConfig(name="mnist"))
    data = load(DataConfig(name="digits"))
    larger = {
        part: nn.functional.interpolate(getattr(data, part), size=(28, 28), mode="bilinear")
        for part in ("x_train", "x_validation", "x_test")
    }
    return replace(data, name="digits enlarged to 28 x 28", **larger)


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """ReLU network, PyTorch's initialisation at seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def networks(data: Dataset, sizes: Sequence[int] = SIZES, epochs: int = 5) -> dict[str, nn.Sequential]:
    """Three versions: at random, trained (AdamW 1e-3, batches of 128), and trained with group lasso; seeds 0."""
    found = {name: fully_connected(sizes) for name in NETWORKS}
    config = TrainConfig(epochs=epochs, patience=None)
    train(found["trained"], data, config, seed=0)
    train(found["group lasso"], data, config, seed=0, penalty=GroupLasso(3e-3))
    return found


def peer(model: nn.Sequential) -> tuple[float, float]:
    """ECLipsE-Fast of eclipse-nn, with seconds."""
    from eclipse_nn.LipConstEstimator import LipConstEstimator

    value, seconds = timed(LipConstEstimator(model).estimate, "ECLipsE_Fast")
    return float(value), seconds


def bracket(model: nn.Module, norm: Norm, inputs: Tensor, budget_s: float = 10.0) -> dict[str, float]:
    """Every bound of the whole network, above and below."""
    network = trace(model, inputs.shape[1:])
    found = lipschitz(network, norm=norm, inputs=inputs, budget_s=budget_s)
    return {
        "structure": lipschitz(network, norm=norm, method="structure", inputs=inputs[:1]).upper,
        "alignment": lipschitz(network, norm=norm, method="alignment", inputs=inputs[:1]).upper,
        **found.uppers,
        "ascent": found.lower,
        "sampled": found.sampled,
    }


def constants(model: nn.Sequential, inputs: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """l_2 constants by method, and the seconds of each: ours alone from a fresh trace, both lower bounds in one call."""
    shape = inputs.shape[1:]
    values, seconds = {}, {}
    for method in ("product", "fast", "first-order"):
        result, seconds[method] = timed(
            lipschitz, model, norm="l2", method=method, input_shape=shape, inputs=inputs[:1]
        )
        values[method] = result.upper
    result, seconds["ascent"] = timed(lipschitz, model, norm="l2", inputs=inputs)
    values["ascent"], values["sampled"] = result.lower, result.sampled
    seconds["sampled"] = seconds["product"]
    values["eclipse-nn, ECLipsE_Fast"], seconds["eclipse-nn, ECLipsE_Fast"] = peer(model)
    return values, seconds


def to_margins(model: nn.Module, inputs: Tensor, budget_s: float = 10.0) -> dict[str, float]:
    """The largest l_inf constant of a difference of two logits: ours, and the product of norms."""
    network = trace(model, inputs.shape[1:])
    features, head = encoder(network)
    product = propagate(items_of(features), "linf") * float(dual_differences(head, "linf").max())
    ours, seconds = timed(margins, network, norm="linf", budget_s=budget_s)
    return {"product": product, "margin": float(ours.upper.max()), "seconds": seconds}


def robustness(model: nn.Module, data: Dataset, norm: Norm, budgets: Sequence[float]) -> list[dict[str, float]]:
    """For each budget: certified accuracy, what PGD (40 steps) leaves, the gap of losses and its bound; 1000 test images."""
    x, y = data.x_test[:1000], data.y_test[:1000]
    features, head = encoder(model, x.shape[1:])
    constant = lipschitz(features, norm=norm, method="first-order").upper
    differences = margins(model, norm=norm, input_shape=x.shape[1:]).upper
    radii = radii_from_margins(model(x), y, differences)
    loss, accuracy = loss_and_accuracy(model, x, y)
    rows = []
    for eps in budgets:
        attacked = pgd(model, x, y, Threat(norm, eps), drop_fallen=False)
        loss_attacked, left = loss_and_accuracy(model, attacked, y)
        rows.append(
            {
                "eps": eps,
                "clean": accuracy,
                "certified": certified_accuracy(radii, eps),
                "after_pgd": left,
                "gap": loss_attacked - loss,
                "gap_bound": gap_bound(constant, head, y, eps, norm),
            }
        )
    return rows


def layer_pair(width: int, kind: str) -> tuple[Tensor, Tensor]:
    """Two width x width layers, Gaussian (seed 0), or with singular values 1/j."""
    generator = torch.Generator().manual_seed(0)
    pair = []
    for _ in range(2):
        matrix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        if kind == "decaying":
            left, right = (
                torch.linalg.qr(matrix).Q,
                torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q,
            )
            matrix = left / torch.arange(1, width + 1, dtype=torch.float64) @ right
        pair.append(matrix)
    return pair[0], pair[1]


def alignments(width: int = 2000, k: int = 20) -> list[dict[str, Any]]:
    """Both norms of a Gaussian pair and of one whose singular values decay, k dominant terms each."""
    rows = []
    for kind in ("Gaussian", "decaying"):
        first, second = layer_pair(width, kind)
        for norm in ("l2", "linf"):
            found, seconds = timed(alignment, first, second, norm, k=k)
            rows.append({"pair": kind, "norm": norm, "lower": found.lower, "upper": found.upper, "seconds": seconds})
    return rows


def growth(width: int) -> dict[str, float]:
    """Seconds for width-width-width-10: certified product, 20 steps of first-order, alignment of the two layers."""
    model = fully_connected((width, width, width, 10))
    network = trace(model, (width,))
    weights = [part.weight.detach().double() for part in model if isinstance(part, nn.Linear)]
    steps = [Step(w, w.new_zeros(len(w)), w.new_ones(len(w))) for w in weights[:-1]]
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: propagate(items_of(network), "l2"),
        "first-order, 20 steps": lambda: ellipsoid_bound(
            steps, weights[-1], "l2", goal="whole", most=20, seconds=math.inf
        ),
        "alignment l2": lambda: alignment(weights[0], weights[1], "l2", k=min(20, width)),
        "alignment linf": lambda: alignment(weights[0], weights[1], "linf", k=min(20, width)),
    }
    return {"width": width} | {name: timed(call)[1] for name, call in calls.items()}


def main() -> None:
    args = arguments("Certified constants beside a peer, what they cost and how that grows.")
    before = machine()
    trace(nn.Linear(2, 2))  # the first call in a process imports for seconds
    data = images()
    models = networks(data)
    inputs = data.x_test[:16].double()
    found = {name: constants(model, inputs) for name, model in models.items()}
    values = {name: pair[0] for name, pair in found.items()}
    seconds = {name: pair[1] for name, pair in found.items()}
    margin = {name: to_margins(model, inputs) for name, model in models.items()}
    pairs = alignments()
    trained = values["trained"]
    ratios = {
        "l2_first_order_over_fast": trained["first-order"] / trained["eclipse-nn, ECLipsE_Fast"],
        "l2_first_order_over_ascent": trained["first-order"] / trained["ascent"],
        "l2_fast_over_peer": trained["fast"] / trained["eclipse-nn, ECLipsE_Fast"],
        "l2_first_order_seconds": seconds["trained"]["first-order"],
        "l2_everything_seconds": seconds["trained"]["ascent"],
        "linf_product_over_margin": margin["trained"]["product"] / margin["trained"]["margin"],
        "alignment_2000_seconds": sum(row["seconds"] for row in pairs),
    }
    grown = [growth(width) for width in WIDTHS]
    write(
        args.json,
        {
            "ratios": ratios,
            "data": data.name,
            "accuracy": {name: loss_and_accuracy(model, data.x_test, data.y_test)[1] for name, model in models.items()},
            "l2": values,
            "l2_seconds": seconds,
            "linf_margins": margin,
            "bracket": {norm: bracket(models["trained"], norm, inputs) for norm in ("l2", "linf")},
            "robustness": {
                name: {
                    "l2": robustness(models[name], data, "l2", (0.05, 0.1, 0.2, 0.5)),
                    "linf": robustness(models[name], data, "linf", (0.001, 0.005, 0.01, 0.05)),
                }
                for name in ("trained", "group lasso")
            },
            "alignment": pairs,
            "growth": grown,
            "machine": before,
            "versions": versions("torch", "eclipse-nn"),
        },
    )
    print(f"784-256-128-10, {data.name}: l_2 constant, and seconds\n")
    print(table([["", *values], *([method, *_cells(method, values, seconds)] for method in ORDER)]), "\n")
    rows = [[name, *(f"{row[key]:.4g}" for key in ("product", "margin", "seconds"))] for name, row in margin.items()]
    print(table([["l_inf to margins", "product", "ours", "seconds"], *rows]), "\n")
    rows = [
        [f"{row['pair']}, {row['norm']}", *(f"{row[key]:.4f}" for key in ("lower", "upper", "seconds"))]
        for row in pairs
    ]
    print(table([["alignment, 2000 x 2000, k = 20", "lower", "upper", "seconds"], *rows]), "\n")
    print(table([["", "value"], *([name, f"{value:.4g}"] for name, value in ratios.items())]), "\n")
    head = list(grown[0])
    print(table([head, *([str(row["width"]), *(f"{row[key]:.3f}" for key in head[1:])] for row in grown)]))


def _cells(method: str, values: dict[str, dict[str, float]], seconds: dict[str, dict[str, float]]) -> list[str]:
    return [f"{values[name][method]:.4g} ({seconds[name][method]:.2f} s)" for name in values]


if __name__ == "__main__":
    main()
