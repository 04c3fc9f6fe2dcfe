"""Section 4 of theory.md as it is written: every mask, one at a time."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from oracles.compressibility import singular_values
from oracles.networks import ORDER

Array = NDArray[np.float64]


def all_masks(h: int) -> list[Array]:
    return [np.array(bits) for bits in itertools.product((0.0, 1.0), repeat=h)]


def norm_of(matrix: Array, norm: str) -> float:
    """Scaled first, so that nothing vanishes or overflows on the way."""
    if norm == "l2":
        return float(singular_values(matrix)[0])
    return float(np.linalg.norm(matrix, np.inf))


def masked_norm(first: Array, second: Array, norm: str) -> float:
    """max over D in {0, 1}^h of ||second D first||."""
    return max(norm_of(second @ (mask[:, None] * first), norm) for mask in all_masks(len(first)))


def dominant(matrix: Array, norm: str, k: int) -> Array:
    """The k rows with the largest l1 norms, the others zero; or the best approximation of rank k."""
    if norm == "linf":
        kept = np.zeros_like(matrix)
        rows = np.argsort(-np.abs(matrix).sum(axis=1), kind="stable")[:k]
        kept[rows] = matrix[rows]
        return kept
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left[:, :k] * sigma[:k]) @ right[:k])


def alignment(first: Array, second: Array, norm: str, k_first: int, k_second: int) -> float:
    """A_p = max_D ||W2_k D W1_k|| / (||W2|| ||W1||) + R_p."""
    top_first, top_second = np.linalg.norm(first, ORDER[norm]), np.linalg.norm(second, ORDER[norm])
    kept_first, kept_second = dominant(first, norm, k_first), dominant(second, norm, k_second)
    r1 = np.linalg.norm(first - kept_first, ORDER[norm]) / top_first
    r2 = np.linalg.norm(second - kept_second, ORDER[norm]) / top_second
    return float(masked_norm(kept_first, kept_second, norm) / (top_first * top_second) + r1 + r2 + r1 * r2)
