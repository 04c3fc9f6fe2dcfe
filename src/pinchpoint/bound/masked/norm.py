"""max over D of ||W2 D W1||: how much two layers with a ReLU between them can amplify, bracketed from both sides.

D is diagonal with entries in {0, 1}. ||W2 D W1|| is convex in D, so the maximum over [0, 1] is the same: the bound holds
for every activation whose slopes lie in [0, 1].
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.masked.l2 import masked_l2
from pinchpoint.bound.masked.linf import masked_linf
from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import as_matrix, check_norm, times_up
from pinchpoint.records import Norm

AGREE = 1e-9
"""Brackets this narrow, relative to their value, are called exact: what is left is rounding."""


@dataclass(frozen=True)
class MaskedNorm:
    """``lower <= max_D ||W2 D W1|| <= upper``: ``lower`` is reached by a D that was found, ``upper`` is certified.

    ``exact``: the two differ by rounding only. ``method`` says where ``upper`` comes from.
    """

    lower: float
    upper: float
    exact: bool
    method: str


def masked_norm(first: Float[Tensor, "h d"], second: Float[Tensor, "m h"], norm: Norm, *, seed: int = 0) -> MaskedNorm:
    """The largest ||second D first|| over all D in {0, 1}^h, as an operator from l_p to l_p.

    Args:
        first: W1, the layer before the ReLU.
        second: W2, the layer after it.
        norm: ``linf`` or ``l2``.
        seed: of the random starts of the search for ``lower``.

    Raises:
        ModelError: where the shapes do not chain, or a matrix is empty or not finite.

    >>> import torch
    >>> first, second = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])
    >>> result = masked_norm(first, second, "linf")  # either unit alone passes 1; both together cancel
    >>> round(result.lower, 9), round(result.upper, 9), result.exact
    (1.0, 1.0, True)
    """
    first, second = check_chain(first, second, norm)
    (first, up_first), (second, up_second) = normalised(first), normalised(second)
    return scaled(bracket(first, second, norm, seed), up_first, up_second)


def check_chain(first: Tensor, second: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Both matrices in float64; refused where second @ first does not exist."""
    check_norm(norm)
    first, second = as_matrix(first), as_matrix(second)
    if second.shape[1] != first.shape[0]:
        raise ModelError(
            "the second layer must take what the first one gives",
            f"shapes {tuple(first.shape)} and then {tuple(second.shape)}",
            "give two adjacent layers, in the order in which they act",
        )
    return first, second


def bracket(first: Tensor, second: Tensor, norm: Norm, seed: int) -> MaskedNorm:
    """``masked_norm`` of matrices with entries of at most 1."""
    lower, upper, method = (masked_linf if norm == "linf" else masked_l2)(first, second, seed)
    return MaskedNorm(lower, upper, upper <= lower * (1 + AGREE), method)


def normalised(matrix: Float[Tensor, "h d"]) -> tuple[Float[Tensor, "h d"], float]:
    """The matrix divided by a power of two, entries at most 1, and that power: nothing is rounded."""
    top = float(matrix.abs().max())
    if top == 0.0:
        return matrix, 1.0
    exponent = math.frexp(top)[1]
    scale = math.ldexp(1.0, min(exponent, 1023))
    return matrix / scale, scale


def scaled(value: MaskedNorm, *factors: float) -> MaskedNorm:
    """The bracket in the units of the given matrices; a number beyond float64 stays a true bound."""
    lower = value.lower
    for factor in factors:
        lower = math.nextafter(min(lower * factor, sys.float_info.max), 0.0)
    return MaskedNorm(lower, times_up(value.upper, *factors), value.exact, value.method)
