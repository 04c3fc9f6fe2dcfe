"""max over D in {0, 1}^h of ||A D B||_2 (paper, section 3; theory.md, section 4).

For any positive diagonal T, with x = T^(1/2) A' u and y = T^(-1/2) B v for unit vectors u and v,

    u' A D B v = x' D y <= sum_m max(0, x_m y_m) <= (1/4) ||x + y||^2
    => max_D ||A D B||_2 <= (1/2) lambda_max(T^(1/2) A'A T^(1/2) + T^(-1/2) B B' T^(-1/2)),

convex in log T. The right side has the eigenvalues of C C', C = [A T^(1/2); B' T^(-1/2)], which is small where A and B are
thin. At its minimum it is the value of the semidefinite relaxation.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from pinchpoint.bound.masked.enumeration import masks
from pinchpoint.measure.spectrum import EPS64
from pinchpoint.utils.descent import lowest

MAX_UNITS = 16
STARTS = 20
FEW_STARTS = 6
LARGE = 2**20
"""Numbers in A and B from which the ascent takes few starts: each step costs seconds otherwise."""
ASCENT_STEPS = 200
TINY = 1e-150
"""Below it squares vanish; such units count for nothing beside others of size 1."""
SMALL = 256
"""Sides up to which an eigendecomposition in every step is cheap."""


def masked_l2(first: Float[Tensor, "h d"], second: Float[Tensor, "m h"], seed: int) -> tuple[float, float, str]:
    """Lower bound, certified upper bound, and the method of the upper one. Entries must be at most 1 in size."""
    units = (second != 0).any(0) & (first != 0).any(1)
    if not bool(units.any()):
        return 0.0, 0.0, "zero"
    a, b = _balanced(second[:, units], first[units])
    (m, h), d = a.shape, b.shape[1]
    entering, leaving = torch.linalg.vector_norm(b, dim=1), torch.linalg.vector_norm(a, dim=0)
    rounding = 32 * (m + h + d) * EPS64 * float((entering * leaving).sum())
    lower = ascend(a, b, seed)
    if h <= MAX_UNITS:
        lower = top = _enumerate(a, b, lower - rounding)
        method = "enumeration of units"
    else:
        top = scaling_bound(a, b)
        method = "diagonal scaling"
    return max(lower - rounding, 0.0), top + rounding, method


def _balanced(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"]) -> tuple[Tensor, Tensor]:
    """The same products a_m b_m', shared evenly between both sides by powers of two."""
    ratio = b.abs().amax(dim=1).log2() - a.abs().amax(dim=0).log2()
    scale = torch.exp2((ratio / 2).round())
    return a * scale, b / scale[:, None]


def ascend(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], seed: int) -> float:
    """A value that some D reaches: u, v and D of u' A D B v in turn, each the best for the other two.

    The starts: the top pair of singular vectors of A B, and random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = STARTS if a.numel() + b.numel() <= LARGE else FEW_STARTS
    v = torch.randn(b.shape[1], starts, generator=generator, dtype=b.dtype).to(b.device)
    for _ in range(20):  # the first start goes on to the top singular vector of A B
        v[:, :1] = _unit(b.T @ (a.T @ (a @ (b @ v[:, :1]))))
    through = b @ v
    mask = torch.ones_like(through)
    mask[:, starts // 2 :] = torch.randint(0, 2, mask[:, starts // 2 :].shape, generator=generator).to(mask)
    best = torch.zeros(starts, dtype=b.dtype, device=b.device)
    for step in range(ASCENT_STEPS):
        back = a.T @ _unit(a @ (mask * through))
        mask = (back * through > 0).to(b.dtype)
        v = _unit(b.T @ (mask * back))
        through = b @ v
        value = torch.linalg.vector_norm(a @ (mask * through), dim=0)
        if step > 10 and bool((value <= best * (1 + 1e-6)).all()):
            break
        best = torch.maximum(best, value)
    return float(best.max())


def _unit(columns: Tensor) -> Tensor:
    unit: Tensor = torch.nn.functional.normalize(columns, dim=0, eps=1e-300)
    return unit


def _enumerate(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], lower: float) -> float:
    """The largest ||A D B||_2 over all D, never below ``lower``, a value already reached."""
    if a.shape[0] > a.shape[1]:
        a = torch.linalg.qr(a, mode="r").R
    if b.shape[1] > b.shape[0]:
        b = torch.linalg.qr(b.T, mode="r").R.T
    all_masks = masks(a.shape[1], a)
    form = (a.T @ a) * (b @ b.T)
    frobenius = ((all_masks @ form) * all_masks).sum(1)  # ||A D B||_F^2, above ||A D B||_2^2
    order = frobenius.argsort(descending=True)
    slack = 1e-9 * float(frobenius.max())
    best = max(lower, 0.0)
    for chunk in order.split(2048):
        if float(frobenius[chunk[0]]) + slack < best**2:
            break
        products = torch.einsum("ih,nh,hj->nij", a, all_masks[chunk], b)
        gram = products @ products.mT if a.shape[0] <= b.shape[1] else products.mT @ products
        fourth = torch.linalg.matrix_norm(gram)  # Schatten-4 norm squared, above ||A D B||_2^2
        open_products = products[fourth + slack >= best**2]
        if len(open_products):
            best = max(best, float(torch.linalg.matrix_norm(open_products, 2).max()))
    return best


def scaling_bound(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"]) -> float:
    """The certified bound, at the best T found."""
    log_t = _best_scaling(a, b)
    m, h, d = a.shape[0], b.shape[0], b.shape[1]
    root = (log_t / 2).exp()
    joined = torch.cat([a * root, b.T / root])
    gram = joined @ joined.T if m + d <= h else joined.T @ joined
    return top_eigenvalue_upper(gram, m + h + d) / 2


def top_eigenvalue_upper(gram: Float[Tensor, "n n"], terms: int) -> float:
    """Above the largest eigenvalue of C C', computed in float64 from ``terms`` = rows + columns of C.

    Each entry of the product is off by at most n eps of |C||C'|, whose norm is at most trace(C C'); LAPACK's eigenvalues by
    p(n) eps ||C C'||. Eight times terms covers both.
    """
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0) + 8 * terms * EPS64 * gram.trace())


def _best_scaling(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"]) -> Float[Tensor, "h"]:
    """log T that (nearly) minimises the bound."""
    entering, leaving = torch.linalg.vector_norm(b, dim=1), torch.linalg.vector_norm(a, dim=0)
    log_t: Tensor = entering.clamp(min=TINY).log() - leaving.clamp(min=TINY).log()
    if min(a.shape[1], a.shape[0] + b.shape[1]) > SMALL:
        return _by_subspace(a, b, log_t)
    for hardness in (30.0, 300.0, 3000.0, 30000.0):
        log_t = _by_eigenvalues(a, b, log_t, hardness)
    return log_t


def _by_eigenvalues(
    a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], log_t: Float[Tensor, "h"], hardness: float
) -> Float[Tensor, "h"]:
    """L-BFGS on a soft maximum of all eigenvalues; d lambda / d log T_m = (T^(1/2) A'w1)_m^2 - (T^(-1/2) B w2)_m^2."""
    reference = float(_eigen(a, b, log_t)[0][-1])

    def value_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        values, entering, leaving = _eigen(a, b, torch.from_numpy(point).to(log_t))
        heights = hardness * values / reference
        gradient = (leaving.square() - entering.square()) @ torch.softmax(heights, 0) / reference
        return float(torch.logsumexp(heights, 0)) / hardness, gradient.cpu().numpy()

    start = log_t.cpu().numpy()
    box = np.stack([start - 60, start + 60], axis=1)  # T stays far from overflow
    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": 60})
    return torch.as_tensor(found.x).to(log_t)


def _eigen(
    a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], log_t: Float[Tensor, "h"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of C C' (or C'C), T^(-1/2) B w2 and T^(1/2) A'w1 for its eigenvectors w."""
    root = (log_t / 2).exp()
    joined = torch.cat([a * root, b.T / root])
    m, h = a.shape
    if len(joined) <= h:
        values, w = torch.linalg.eigh(joined @ joined.T)
    else:
        values, z = torch.linalg.eigh(joined.T @ joined)
        w = _unit(joined @ z)
    return values, joined[m:].T @ w[m:], joined[:m].T @ w[:m]


def _by_subspace(
    a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], log_t: Float[Tensor, "h"], steps: int = 60
) -> Float[Tensor, "h"]:
    """Adam on the largest eigenvalues, estimated by warm-started subspace iteration: large layers."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(len(log_t), 12, generator=generator, dtype=b.dtype).to(b.device)

    def iterate(point: Tensor) -> tuple[float, Tensor]:
        nonlocal block
        root = (point / 2).exp()[:, None]
        for _ in range(2):
            z = torch.linalg.qr(block).Q
            leaving, entering = root * (a.T @ (a @ (root * z))), b @ (b.T @ (z / root)) / root
            block = leaving + entering
        values, turn = torch.linalg.eigh(z.T @ block)
        share = torch.softmax(200 * values / values[-1], 0)
        return float(values[-1]), ((z @ turn) * ((leaving - entering) @ turn)) @ share / values[-1]

    for _ in range(10):  # from random to near the top before the first step counts
        iterate(log_t)
    return lowest(log_t, iterate, steps)
