"""Theorem 3.1 of the paper: an operator norm is at most structure x scale.

With W of shape h x d, r = min(h, d), row l1 norms nu, singular values sigma and the residuals at the chosen k:

    ||W||_inf <= (1 - residual_nu) / (1 - spread_nu) * (sqrt(h k_r) + sqrt(h d) residual_r) / k * ||W||_F
    ||W||_2   <= (1 - residual_sigma) / (1 - spread_sigma) * sqrt(r) / k * ||W||_F

residual_r is the largest (q = 1, k_r) residual among the rows. Everything but ||W||_F is structure. Rectangular matrices
are our re-derivation; h = d gives the paper's form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.measure.compressibility import residual_curve, sorted_magnitudes
from pinchpoint.measure.spectrum import as_matrix, check_norm, frobenius_norm, operator_norm, row_norms, singular_values
from pinchpoint.records import Norm


@dataclass(frozen=True)
class StructureScale:
    """``operator_norm <= structure * scale = bound``; ``k_row`` is None for l2, where rows play no part."""

    norm: Norm
    operator_norm: float
    structure: float
    scale: float
    bound: float
    k: int
    k_row: int | None


_NUMBERS = 2**22
"""Entries sorted at a time."""


def structure_curve(
    matrix: Float[Tensor, "h d"], norm: Norm, k_row: int | None = None
) -> tuple[Float[Tensor, "n"], int | None]:
    """The structure factor for every k = 1 ... n (n = h for linf, r for l2), and the k_row used.

    Entries are infinite where the k-th term is zero (spread 1). ``k_row=None`` takes the tightest.

    Source: Barsbey et al. 2026, Theorem 3.1.

    >>> curve, k_row = structure_curve(torch.eye(2), "linf")  # ||W||_F = sqrt(2), ||W||_inf = 1
    >>> [round(value, 6) for value in curve.tolist()], k_row
    ([0.707107, 0.707107], 1)
    """
    check_norm(norm)
    matrix = as_matrix(matrix)
    h, d = matrix.shape
    if norm == "l2":
        return _dominance(singular_values(matrix)) * math.sqrt(min(h, d)), None
    row_residual = matrix.new_zeros(d)  # over k_r = 1 ... d
    for rows in matrix.split(max(1, _NUMBERS // d)):
        row_residual = torch.maximum(row_residual, residual_curve(rows).amax(dim=0))
    k_rows = torch.arange(1, d + 1, dtype=torch.float64, device=matrix.device)
    row_factor = (h * k_rows).sqrt() + math.sqrt(h * d) * row_residual
    if k_row is None:
        k_row = int(row_factor.argmin()) + 1
    _check_k("k_row", k_row, d)
    return _dominance(row_norms(matrix)) * row_factor[k_row - 1], k_row


def structure_scale(
    matrix: Float[Tensor, "h d"], norm: Norm, k: int | None = None, k_row: int | None = None
) -> StructureScale:
    """Theorem 3.1 for one matrix.

    Args:
        matrix: h x d weights.
        norm: ``linf`` or ``l2``.
        k: number of dominant rows or singular values; None takes the one with the tightest bound.
        k_row: number of dominant entries in a row (linf only); None takes the tightest.

    Raises:
        ModelError: where k or k_row is out of range, or the matrix is empty or not finite.

    >>> result = structure_scale(torch.diag(torch.tensor([2.0, 1.0])), "l2", k=1)
    >>> result.operator_norm, round(result.bound, 6)  # (2/3) / 1 * sqrt(2) * sqrt(5)
    (2.0, 2.108185)
    """
    curve, k_row = structure_curve(matrix, norm, k_row)
    if k is None:
        k = int(curve.argmin()) + 1
    _check_k("k", k, curve.shape[0])
    structure = float(curve[k - 1])
    scale = frobenius_norm(matrix)
    return StructureScale(
        norm=norm,
        operator_norm=operator_norm(matrix, norm),
        structure=structure,
        scale=scale,
        bound=structure * scale if scale > 0 else 0.0,
        k=k,
        k_row=k_row,
    )


def _dominance(theta: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """(1 - residual) / ((1 - spread) k) for k = 1 ... n."""
    magnitudes = sorted_magnitudes(theta)
    kept = magnitudes.cumsum(-1)
    share = kept / kept[-1]  # 1 - residual, without its cancellation where many terms are left out
    k = torch.arange(1, magnitudes.shape[0] + 1, dtype=torch.float64, device=theta.device)
    if magnitudes[0] == 0:
        return 1.0 / k
    return share / (magnitudes * k)  # magnitudes are relative to the first: 1 - spread


def _check_k(name: str, k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ModelError(f"{name} must lie in 1 ... {n}", k, "leave it out for the tightest choice")
