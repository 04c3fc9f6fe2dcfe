"""Section 2 and Theorem 3.1 as they are written, one k at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def residual(theta: Array, k: int, q: float = 1.0) -> float:
    """||theta - theta_k||_q / ||theta||_q."""
    magnitudes = np.sort(np.abs(theta))[::-1]
    whole = _norm(magnitudes, q)
    return _norm(magnitudes[k:], q) / whole if whole > 0 else 0.0


def _norm(magnitudes: Array, q: float) -> float:
    """Scaled by its largest entry, so that no power vanishes that counts."""
    top = magnitudes.max(initial=0.0)
    return float(top * math.fsum((magnitudes / top) ** q) ** (1 / q)) if top > 0 else 0.0


def spread(theta: Array, k: int) -> float:
    magnitudes = np.sort(np.abs(theta))[::-1]
    return 0.0 if magnitudes[0] == 0 else float(1 - magnitudes[k - 1] / magnitudes[0])


def smallest_k(theta: Array, target: float, q: float = 1.0) -> int:
    return next(k for k in range(1, len(theta) + 1) if residual(theta, k, q) <= target)


def row_norms(matrix: Array) -> Array:
    return np.array([math.fsum(np.abs(row)) for row in matrix])


def singular_values(matrix: Array) -> Array:
    top = np.abs(matrix).max()
    return np.zeros(min(matrix.shape)) if top == 0 else np.linalg.svd(matrix / top, compute_uv=False) * top


def frobenius(matrix: Array) -> float:
    return math.hypot(*matrix.ravel())


def structure_linf(matrix: Array, k: int, k_row: int) -> float:
    """(1 - residual_nu) / (1 - spread_nu) * (sqrt(h k_r) + sqrt(h d) residual_r) / k_nu."""
    h, d = matrix.shape
    nu = row_norms(matrix)
    residual_r = max(residual(row, k_row) for row in matrix)
    return _ratio(nu, k) * (math.sqrt(h * k_row) + math.sqrt(h * d) * residual_r) / k


def structure_l2(matrix: Array, k: int) -> float:
    """(1 - residual_sigma) / (1 - spread_sigma) * sqrt(r) / k_sigma."""
    sigma = singular_values(matrix)
    return _ratio(sigma, k) * math.sqrt(len(sigma)) / k


def _ratio(theta: Array, k: int) -> float:
    """(1 - residual) / (1 - spread), without the cancellations of computing either."""
    magnitudes = np.sort(np.abs(theta))[::-1]
    if magnitudes[k - 1] == 0:
        return math.inf
    magnitudes = magnitudes / magnitudes[0]
    return math.fsum(magnitudes[:k]) / math.fsum(magnitudes) / float(magnitudes[k - 1])
