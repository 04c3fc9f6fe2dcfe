"""What small networks can do, by enumeration, in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
ORDER = {"linf": np.inf, "l2": 2}
DUAL = {"linf": 1, "l2": 2}


def relu_network(weights: Sequence[Array], biases: Sequence[Array] | None = None) -> nn.Sequential:
    """A fully connected ReLU network in float64 with these weights."""
    steps: list[nn.Module] = []
    for place, matrix in enumerate(weights):
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biases is not None).double()
        layer.weight.data = torch.from_numpy(matrix)
        if biases is not None:
            layer.bias.data = torch.from_numpy(biases[place])
        steps += [layer, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def corners(low: Array, high: Array) -> Iterator[Array]:
    """All vectors whose entries are extreme."""
    for bits in itertools.product((False, True), repeat=len(low)):
        yield np.where(bits, high, low)


def operator_norm(matrix: Array, norm: str) -> float:
    """Scaled first: squares of huge and tiny entries neither overflow nor vanish."""
    top = float(np.abs(matrix).max(initial=0.0))
    if top in (0.0, np.inf):
        return top
    return top * float(np.linalg.norm(matrix / top, ORDER[norm]))


def largest_over_slopes(weights: Sequence[Array], slopes: Sequence[tuple[Array, Array]], norm: str) -> float:
    """max over extreme slopes D of ||W_n D_{n-1} ... D_1 W_1||. The norm is convex in each D, so corners are enough."""
    best = 0.0
    for choice in itertools.product(*(list(corners(low, high)) for low, high in slopes)):
        product = weights[0]
        for diagonal, weight in zip(choice, weights[1:], strict=True):
            product = weight @ (diagonal[:, None] * product)
        best = max(best, operator_norm(product, norm))
    return best


def largest_over_masks(weights: Sequence[Array], norm: str) -> float:
    """max over all 0/1 diagonals D of ||W_n D_{n-1} ... D_1 W_1||: never below the Lipschitz constant."""
    sizes = [len(weight) for weight in weights[:-1]]
    return largest_over_slopes(weights, [(np.zeros(size), np.ones(size)) for size in sizes], norm)


def cross_entropy(logits: Array, labels: NDArray[np.int64]) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
