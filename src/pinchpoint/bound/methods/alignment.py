"""Interlayer alignment A_p: how far two layers with a ReLU between them fall short of the product of their norms.

With W1 (h x d) before the ReLU and W2 (m x h) after it, W_k the dominant part (k rows kept for linf, best rank k for l2):

    A_p = max_D ||W2_k D W1_k||_p / (||W2||_p ||W1||_p) + R_p,   R_p = r1 + r2 + r1 r2,   r = ||W - W_k||_p / ||W||_p
    ||W2 D W1||_p <= min(1, A_p) ||W2||_p ||W1||_p               for every diagonal D with entries in [0, 1]

(paper, section 3; theory.md, section 4). With k = n nothing is left out: R_p = 0 and A_p is the pair's own maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.masked.norm import MaskedNorm, bracket, check_chain, normalised, scaled
from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import EPS64
from pinchpoint.records import Norm

WHOLE = 3000
"""Units up to which the l2 problem is solved whole."""
ENUMERATED = 16
SMALL = 512
"""Sides up to which singular values come from an SVD; beyond, from a Gram matrix, ten times as fast."""


@dataclass(frozen=True)
class Alignment:
    """``lower <= A_p <= upper`` for the dominant parts ``k`` (of the first and of the second layer).

    ``dominant`` brackets max_D ||W2_k D W1_k||_p, ``remainder`` is R_p rounded up, ``exact`` says that ``upper`` and
    ``lower`` differ by rounding only, and ``factor`` = min(1, upper) is what a Lipschitz bound may multiply with.
    """

    norm: Norm
    k: tuple[int, int]
    dominant: MaskedNorm
    remainder: float
    lower: float
    upper: float
    exact: bool
    factor: float


def alignment(
    first: Float[Tensor, "h d"],
    second: Float[Tensor, "m h"],
    norm: Norm,
    *,
    k: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Alignment:
    """A_p of two adjacent layers, bracketed.

    Args:
        first: W1, the layer before the ReLU.
        second: W2, the layer after it.
        norm: ``linf`` or ``l2``.
        k: how many rows (linf) or singular values (l2) to keep, for both layers or (first, second); None takes all of
            them, or the dominant part with the smallest remainder among k <= 16 where that gives less.
        seed: of the random starts of the search for ``lower``.

    Raises:
        ModelError: where the shapes do not chain, k is out of range, or a matrix is empty or not finite.

    Source: Barsbey et al. 2026, section 3; R_p for rectangular matrices re-derived.

    >>> first, second = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])
    >>> result = alignment(first, second, "linf")  # norms 1 and 2; no D passes more than 1
    >>> round(result.lower, 9), round(result.upper, 9), result.exact
    (0.5, 0.5, True)
    """
    first, second = check_chain(first, second, norm)
    (first, up_first), (second, up_second) = normalised(first), normalised(second)
    layers = _apart(first, norm), _apart(second.T if norm == "l2" else second, norm)
    most = len(layers[0].upper) - 1, len(layers[1].upper) - 1

    def at(k_first: int, k_second: int) -> Alignment:
        kept = (k_first, k_second)
        dominant = bracket(*_dominant(first, second, norm, layers, kept), norm, seed)
        return _assemble(norm, kept, layers, dominant, (up_first, up_second), sum(first.shape) + len(second))

    if k is not None:
        return at(*_checked(k, most))
    if norm == "l2" and min(first.shape[0], first.shape[1] + second.shape[0]) > WHOLE:
        return at(min(64, most[0]), min(64, most[1]))
    best = at(*most)
    few = min(ENUMERATED, most[0])
    if norm == "linf" and not best.exact and _remainder(layers, (few, most[1]))[1] < best.upper:
        best = min(best, at(few, most[1]), key=lambda found: found.upper)
    return best


def _checked(k: int | tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    kept = (k, k) if isinstance(k, int) else k
    for name, value, n in zip(("first", "second"), kept, most, strict=True):
        if not 1 <= value <= n:
            raise ModelError(f"k of the {name} layer must lie in 1 ... {n}", value, "leave it out to keep everything")
    return kept


@dataclass(frozen=True)
class _Apart:
    """A layer taken apart. ``lower[k] <= ||W - W_k||_p <= upper[k]`` for k = 0 (the norm itself) ... n (zero).

    ``dominant(k)``: for linf the k rows kept; for l2 the h x k factor F with ||X W_k||_2 = ||X F||_2 for every X.
    """

    lower: Float[Tensor, "ends"]
    upper: Float[Tensor, "ends"]
    dominant: Callable[[int], Tensor]


def _apart(matrix: Float[Tensor, "h d"], norm: Norm) -> _Apart:
    """For l2 the second layer is given transposed: ||W2_k X|| = ||X' W2_k'||."""
    h, d = matrix.shape
    if norm == "linf":
        values, order = matrix.abs().sum(1).sort(descending=True)
        slack = 8 * d * EPS64
        return _Apart(_ending(values * (1 - slack)), _ending(values * (1 + slack)), lambda k: order[:k])
    if min(h, d) <= SMALL:
        left, sigma, _ = torch.linalg.svd(matrix, full_matrices=False)
        slack = 8 * (h + d) * EPS64 * float(sigma[0])
        lower, upper = (sigma - slack).clamp(min=0), torch.where(sigma[0] > 0, sigma + slack, sigma)
        return _Apart(_ending(lower), _ending(upper), lambda k: _project(matrix, left[:, :k]))
    gram = matrix @ matrix.T if h <= d else matrix.T @ matrix
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    slack = 8 * (h + d) * EPS64 * float(gram.trace())
    lower, upper = (values - slack).clamp(min=0).sqrt(), (values + slack).clamp(min=0).sqrt() * (1 + EPS64)
    if h <= d:
        return _Apart(_ending(lower), _ending(upper), lambda k: _project(matrix, vectors[:, :k]))
    return _Apart(_ending(lower), _ending(upper), lambda k: matrix @ vectors[:, :k])


def _ending(values: Float[Tensor, "n"]) -> Float[Tensor, "ends"]:
    return torch.cat([values, values.new_zeros(1)])


def _project(matrix: Float[Tensor, "h d"], left: Float[Tensor, "h k"]) -> Float[Tensor, "h k"]:
    """U R' with U'W = R'Q': the projection U U'W without the orthonormal rows Q', which change no norm."""
    triangle: Tensor = torch.linalg.qr((left.T @ matrix).T, mode="r").R
    return left @ triangle.T


def _dominant(
    first: Tensor, second: Tensor, norm: Norm, layers: tuple[_Apart, _Apart], kept: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Two matrices with the same max_D as the dominant parts, and as few rows and columns as possible."""
    if norm == "linf":
        rows, outputs = layers[0].dominant(kept[0]), layers[1].dominant(kept[1])
        return first[rows], second[outputs][:, rows]
    return (
        first if kept[0] == len(layers[0].upper) - 1 else layers[0].dominant(kept[0]),
        second if kept[1] == len(layers[1].upper) - 1 else layers[1].dominant(kept[1]).T,
    )


def _remainder(layers: tuple[_Apart, _Apart], kept: tuple[int, int]) -> tuple[float, float]:
    """R_p from below and from above; nothing is left out of a zero matrix."""
    low, high = [], []
    for layer, k in zip(layers, kept, strict=True):
        some = float(layer.lower[0]) > 0
        low.append(float(layer.lower[k] / layer.upper[0]) if some else 0.0)
        high.append(float(layer.upper[k] / layer.lower[0]) if some else 0.0)
    r_low, r_high = (r1 + r2 + r1 * r2 for r1, r2 in (low, high))
    return r_low * (1 - 16 * EPS64), r_high * (1 + 16 * EPS64)


def _assemble(
    norm: Norm,
    kept: tuple[int, int],
    layers: tuple[_Apart, _Apart],
    dominant: MaskedNorm,
    scales: tuple[float, float],
    terms: int,
) -> Alignment:
    r_low, r_high = _remainder(layers, kept)
    (n1_low, n1_high), (n2_low, n2_high) = ((float(layer.lower[0]), float(layer.upper[0])) for layer in layers)
    lower = upper = 0.0
    if n1_low > 0 and n2_low > 0:
        thin = norm == "l2" and any(k < len(layer.upper) - 1 for k, layer in zip(kept, layers, strict=True))
        factored = 64 * terms * EPS64 if thin else 0.0  # rounding of the factors that stand for the dominant parts
        lower = max(dominant.lower / (n1_high * n2_high) + r_low - factored, 0.0) * (1 - 16 * EPS64)
        upper = (dominant.upper / (n1_low * n2_low) + r_high + factored) * (1 + 16 * EPS64)
    return Alignment(norm, kept, scaled(dominant, *scales), r_high, lower, upper, dominant.exact, min(1.0, upper))
