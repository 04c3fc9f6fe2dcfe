"""max over rows a of A and D in {0, 1}^h of ||a D B||_1 by enumeration, where there are few units or few inputs.

Over units: for any p > 0 Cauchy-Schwarz gives ||x||_1^2 <= sum(p) sum_j x_j^2 / p_j, and with x = a D B the right side is
a quadratic form in D of size h x h. Two halves of D and one matrix product give it for all 2^h masks at once; only masks
above the best value found are computed. Over inputs: max_D ||a D B||_1 = max over s in {-1, 1}^d of
sum_m max(0, a_m <b_m, s>), two matrix products for all rows of A.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.measure.spectrum import EPS64

MAX_UNITS = 20
MAX_INPUTS = 16
CHUNK = 2**20
"""Numbers held at once."""
WORK = 2**32
"""Numbers added up before an enumeration over units stops short: some seconds."""


def by_units(
    first: Float[Tensor, "h d"], second: Float[Tensor, "m h"], upper: Float[Tensor, "m"], lower: float
) -> tuple[float, float]:
    """The best value found and an upper bound on all of them: the same number unless the work ran out.

    ``upper`` bounds each row of ``second``; ``lower`` is a value already reached, below which nothing is looked at.
    """
    best, rest, work = lower, 0.0, WORK
    for row in upper.argsort(descending=True).tolist():
        limit = float(upper[row])
        if limit <= best:
            break
        if work <= 0:
            rest = max(rest, limit)
            continue
        best, left, spent = _one_row(second[row, :, None] * first, best, work)
        rest, work = max(rest, min(left, limit)), work - spent
    return best, max(best, rest)


def _one_row(terms: Float[Tensor, "h d"], best: float, work: int) -> tuple[float, float, int]:
    """The better of ``best`` and the largest ||sum_m D_m terms_m||_1 found, a bound on what was left out, work done."""
    h, d = terms.shape
    left_masks, right_masks = masks(h // 2, terms), masks(h - h // 2, terms)
    bounds = _bounds(terms, left_masks, right_masks)
    order = (bounds > best).nonzero().squeeze(1)
    if len(order) == 0:
        return best, best, 0
    order = order[bounds[order].argsort(descending=True)]
    left_sums, right_sums = left_masks @ terms[: h // 2], right_masks @ terms[h // 2 :]
    spent, size = 0, max(1, CHUNK // d)
    for chunk in order.split(size):
        bound = float(bounds[chunk[0]])
        if bound <= best:
            break
        if spent > work:
            return best, bound, spent
        sums = left_sums[chunk // len(right_masks)] + right_sums[chunk % len(right_masks)]
        best = max(best, float(sums.abs().sum(1).max()))
        spent += sums.numel()
    return best, best, spent


def _bounds(
    terms: Float[Tensor, "h d"], left: Float[Tensor, "a left"], right: Float[Tensor, "b right"]
) -> Float[Tensor, "masks"]:
    """A bound on ||sum_m D_m terms_m||_1 for every mask (left index times b, plus right index); smallest of three p."""
    half, (h, d) = left.shape[1], terms.shape
    found = _local_best(terms).abs()
    best = torch.full((len(left), len(right)), torch.inf, dtype=terms.dtype, device=terms.device)
    for weight in (torch.ones_like(found), found, torch.linalg.vector_norm(terms, dim=0)):
        p = weight + 0.1 * weight.mean()
        if not bool((p > 0).all()):
            continue
        scaled = terms / p.sqrt()
        gram = scaled @ scaled.T
        square = 2 * left @ gram[:half, half:] @ right.T
        square += ((left @ gram[:half, :half]) * left).sum(1)[:, None]
        square += ((right @ gram[half:, half:]) * right).sum(1)
        square += 8 * (h * h + d) * EPS64 * float(torch.linalg.vector_norm(scaled, dim=1).sum()) ** 2  # its rounding
        best = torch.minimum(best, (square.clamp(min=0) * p.sum()).sqrt())
    return best.flatten() * (1 + 8 * d * EPS64)


def _local_best(terms: Float[Tensor, "h d"], steps: int = 10) -> Float[Tensor, "d"]:
    """sum_m D_m terms_m for a mask that no change of sign pattern improves, or nearly."""
    total = terms.sum(0)
    for _ in range(steps):
        mask = (terms @ signs(total) > 0).to(terms.dtype)
        total = mask @ terms
    return total


def few_inputs(h: int, d: int, rows: int) -> bool:
    """Whether enumerating the signs of d inputs costs some seconds at most."""
    return d <= MAX_INPUTS and 2**d * h * (d + 2 * rows) <= 4e10


def by_inputs(first: Float[Tensor, "h d"], second: Float[Tensor, "m h"]) -> float:
    """max over D of ||second D first||_inf, exactly up to rounding."""
    best = 0.0
    positive, negative = second.clamp(min=0).T, second.clamp(max=0).T
    for patterns in (2 * masks(first.shape[1], first) - 1).split(max(1, CHUNK // max(first.shape[0], len(second)))):
        seen = patterns @ first.T
        best = max(best, float((seen.clamp(min=0) @ positive + seen.clamp(max=0) @ negative).max()))
    return best


def masks(n: int, like: Tensor) -> Float[Tensor, "masks n"]:
    """All 2^n rows of zeros and ones, with the dtype and device of ``like``."""
    numbers = torch.arange(2**n, device=like.device)
    return (numbers[:, None] >> torch.arange(n, device=like.device) & 1).to(like.dtype)


def signs(values: Tensor) -> Tensor:
    """1 where a value is zero or more, -1 elsewhere."""
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
