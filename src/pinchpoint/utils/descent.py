"""Adam on a function that gives its own gradient: without torch.optim, whose first use imports a compiler for seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def lowest(
    point: Float[Tensor, "n"],
    value_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    steps: int,
    rate: float = 0.1,
    seconds: float = math.inf,
) -> Float[Tensor, "n"]:
    """The point with the lowest value among ``steps`` of Adam (Kingma & Ba 2015), the rate falling as a cosine.

    No step begins after ``seconds``.

    >>> target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> found = lowest(torch.zeros(2).double(), lambda x: (float((x - target).square().sum()), 2 * (x - target)), 200)
    >>> bool((found - target).abs().max() < 0.01)
    True
    """
    best_value, best = math.inf, point
    mean, square = torch.zeros_like(point), torch.zeros_like(point)
    end = time.perf_counter() + seconds
    for step in range(1, steps + 1):
        if time.perf_counter() > end:
            break
        value, gradient = value_and_gradient(point)
        if value < best_value:
            best_value, best = value, point
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        size = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        point = point - size * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return best
