"""How many dimensions a matrix really uses, four answers from its singular values."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError


def effective_rank(sigma: Float[Tensor, "r"]) -> float:
    """exp of the Shannon entropy of sigma / sum(sigma) (Roy & Vetterli 2007); 0 for a zero matrix.

    >>> round(effective_rank(torch.ones(5)), 10)
    5.0
    """
    top = sigma.max()
    if top <= 0:
        return 0.0
    relative = sigma.to(torch.float64) / top
    shares = relative / relative.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def stable_rank(sigma: Float[Tensor, "r"]) -> float:
    """||W||_F^2 / ||W||_2^2; 0 for a zero matrix.

    >>> stable_rank(torch.tensor([2.0, 1.0, 0.0]))
    1.25
    """
    top = sigma.max()
    if top <= 0:
        return 0.0
    return float(((sigma.to(torch.float64) / top) ** 2).sum())


def numerical_rank(sigma: Float[Tensor, "r"], tolerance: float) -> int:
    """How many singular values exceed ``tolerance`` times the largest; 0 for a zero matrix.

    ``numpy.linalg.matrix_rank`` takes max(h, d) * eps, eps of the type the weights are stored in.

    Raises:
        ModelError: where the tolerance is outside [0, 1).

    >>> numerical_rank(torch.tensor([2.0, 1.0, 1e-9]), tolerance=1e-6)
    2
    """
    if not 0.0 <= tolerance < 1.0:
        raise ModelError("a relative tolerance lies in [0, 1)", tolerance, "use max(h, d) * eps as NumPy does")
    top = sigma.max()
    if top <= 0:
        return 0
    return int((sigma.to(torch.float64) / top > tolerance).sum())


def rank_tolerance(rows: int, columns: int, dtype: torch.dtype) -> float:
    """max(h, d) * eps of ``dtype``: below it, relative to the largest, a singular value may be rounding.

    Half precision reaches 1 at large sizes; nothing but zeros can be told there, so it stops short of 1.

    >>> rank_tolerance(4, 8, torch.float64) == 8 * 2.0**-52
    True
    """
    return min(max(rows, columns) * torch.finfo(dtype).eps, math.nextafter(1.0, 0.0))
