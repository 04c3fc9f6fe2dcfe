"""What fully connected ReLU networks can do, by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ORDER = {"linf": np.inf, "l2": 2}
DUAL = {"linf": 1, "l2": 2}


def largest_over_masks(weights: Sequence[Array], norm: str) -> float:
    """max over all 0/1 diagonals D of ||W_n D_{n-1} ... D_1 W_1||: never below the Lipschitz constant."""
    widths = [len(weight) for weight in weights[:-1]]
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=sum(widths)):
        product, at = weights[0], 0
        for width, weight in zip(widths, weights[1:], strict=True):
            product = weight @ (np.array(bits[at : at + width])[:, None] * product)
            at += width
        best = max(best, float(np.linalg.norm(product, ORDER[norm])))
    return best


def cross_entropy(logits: Array, labels: NDArray[np.int64]) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
