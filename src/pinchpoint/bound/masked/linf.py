"""max over D in {0, 1}^h of ||A D B||_inf, row by row of A (paper, section 3; theory.md, section 4).

For one row a of A, with D = (1 + diag(t)) / 2 and t in {-1, 1}^h,

    max_D ||a D B||_1 = (1/2) max_t ||a B + sum_m t_m a_m b_m||_1 <= (||a B||_1 + ||diag(a) B||_{inf -> 1}) / 2.

Certified bounds on the last norm:

* sum_m |a_m| ||b_m||_1, which gives the row sums of (|A B| + |A||B|) / 2;
* for any positive tau (length h) and p (length d), by Cauchy-Schwarz on both sides,

      ||diag(a) B||_{inf -> 1} <= sqrt(sum_m a_m^2 tau_m) sqrt(sum_j p_j) ||diag(tau)^(-1/2) B diag(p)^(-1/2)||_2,

  the dual of Grothendieck's semidefinite relaxation with one scaling for all rows of A: a single spectral norm.

Few units or few inputs are enumerated instead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.masked.enumeration import MAX_UNITS, by_inputs, by_units, few_inputs, signs
from pinchpoint.bound.masked.l2 import TINY, top_eigenvalue_upper
from pinchpoint.measure.spectrum import EPS64
from pinchpoint.utils.descent import lowest

ROWS = 8
STARTS = 8
ASCENT_STEPS = 30
SCALING_STEPS = 60


def masked_linf(first: Float[Tensor, "h d"], second: Float[Tensor, "m h"], seed: int) -> tuple[float, float, str]:
    """Lower bound, certified upper bound, and the method of the upper one. Entries must be at most 1 in size."""
    a, b = _alive(first, second)
    if a.numel() == 0 or b.numel() == 0:
        return 0.0, 0.0, "zero"
    h, d = b.shape
    sizes = a.abs() @ b.abs().sum(1)
    passed = (a @ b).abs().sum(1)
    rounding = 16 * (h + d) * EPS64 * float(sizes.max())
    upper, method = (passed + sizes) / 2, "row sums"
    lower = _ascend(a, b, upper, seed)
    open_rows = upper > lower
    if not bool(open_rows.any()):
        top = lower
    elif h <= MAX_UNITS:
        lower, top = by_units(b, a, upper, lower)
        method = "enumeration of units" if top == lower else "partial enumeration of units"
    elif few_inputs(h, d, int(open_rows.sum())):
        lower = top = max(lower, by_inputs(b, a[open_rows]))
        method = "enumeration of input signs"
    else:
        scaled = (passed + _scaling_bound(a, b, passed)) / 2
        if float(scaled.max()) < float(upper.max()):
            method = "diagonal scaling"
        top = max(lower, float(torch.minimum(upper, scaled).max()))
    return max(lower - rounding, 0.0), top + rounding, method


def _alive(first: Float[Tensor, "h d"], second: Float[Tensor, "m h"]) -> tuple[Tensor, Tensor]:
    """A and B without units that nothing enters or leaves, rows of A that read nothing, inputs that B ignores."""
    units = (second != 0).any(0) & (first != 0).any(1)
    a, b = second[:, units], first[units]
    return a[(a != 0).any(1)], b[:, (b != 0).any(0)]


def _ascend(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], upper: Float[Tensor, "m"], seed: int) -> float:
    """A value that some D reaches: signs of the output and mask in turn, from several D, for the most promising rows."""
    found = ((a * (signs(a @ b) @ b.T)).clamp(min=0)).sum(1)  # every row once, from D = 1
    rows = torch.unique(torch.cat([found.topk(min(ROWS, len(a))).indices, upper.topk(min(ROWS, len(a))).indices]))
    a = a[rows].repeat(STARTS, 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 2, a.shape, generator=generator).to(a)
    for index, start in enumerate((torch.ones_like(a), (a > 0).to(a), (a < 0).to(a))):
        part = slice(index * len(rows), (index + 1) * len(rows))
        mask[part] = start[part]
    best = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for _ in range(ASCENT_STEPS):
        gains = a * (signs((a * mask) @ b) @ b.T)
        mask, value = (gains > 0).to(a), gains.clamp(min=0).sum(1)
        if bool((value <= best * (1 + 1e-6)).all()):
            break
        best = torch.maximum(best, value)
    return float(best.max())


def _scaling_bound(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], passed: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """Certified bounds on ||diag(a) B||_{inf -> 1} for every row a of A.

    Adam on (log tau, log p) lowers the largest row's bound, with the spectral norm estimated by warm-started subspace
    iteration; every (tau, p) is valid, and the one taken is evaluated afresh.
    """
    h, d = b.shape
    squares = a * a
    log_tau = torch.linalg.vector_norm(b, dim=1).clamp(min=TINY).log() - squares.mean(0).clamp(min=TINY**2).log() / 2
    log_p = torch.linalg.vector_norm(b, dim=0).clamp(min=TINY).log()
    start = torch.cat([log_tau - log_tau.mean(), log_p - log_p.mean()])
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, min(8, d), generator=generator, dtype=b.dtype).to(b.device)

    def iterate(point: Tensor) -> tuple[float, Tensor]:
        nonlocal block
        tau, p = point[:h].exp(), point[h:].exp()
        for _ in range(2):
            seen = b @ (block / p.sqrt()[:, None]) / tau[:, None]
            block = torch.linalg.qr(b.T @ seen / p.sqrt()[:, None]).Q
        left = b @ (block / p.sqrt()[:, None]) / tau.sqrt()[:, None]
        vectors, sigma, turn = torch.linalg.svd(left, full_matrices=False)
        share = torch.softmax(100 * sigma / sigma[0], 0)  # near ties at the top count together
        reach = (squares @ tau).clamp(min=TINY**2)
        bounds = passed + (reach * p.sum()).sqrt() * sigma[0]
        rows = torch.softmax(100 * bounds / bounds.max(), 0)
        by_tau = (rows / reach) @ squares * tau - vectors.square() @ share
        by_p = p / p.sum() - (block @ turn.T).square() @ share
        return float(bounds.max()), torch.cat([by_tau, by_p])

    for _ in range(5):  # from random to near the top before the first step counts
        iterate(start)
    best = lowest(start, iterate, SCALING_STEPS)
    tau, p = best[:h].exp(), best[h:].exp()
    scaled = b / tau.sqrt()[:, None] / p.sqrt()
    gram = scaled @ scaled.T if h <= d else scaled.T @ scaled
    return (squares @ tau * p.sum() * top_eigenvalue_upper(gram, h + d)).sqrt() * (1 + 8 * (h + d) * EPS64)
