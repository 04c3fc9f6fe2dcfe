"""max over D in {0, 1}^h of ||A D B||_2 (paper, section 3; theory.md, section 4).

For any positive diagonal T, with x = T^(1/2) A' u and y = T^(-1/2) B v for unit vectors u and v,

    u' A D B v = x' D y <= sum_m max(0, x_m y_m) <= (1/4) ||x + y||^2
    => max_D ||A D B||_2 <= (1/2) lambda_max(T^(1/2) A'A T^(1/2) + T^(-1/2) B B' T^(-1/2)),

convex in log T. The right side has the eigenvalues of C C', C = [A T^(1/2); B' T^(-1/2)], which is small where A and B are
thin. At its minimum it is the value of the semidefinite relaxation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.enumerate_linf import masks
from pinchpoint.measure.spectrum import EPS64

MAX_UNITS = 16
STARTS = 20
ASCENT_STEPS = 200
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
    ratio = torch.linalg.vector_norm(b, dim=1).log2() - torch.linalg.vector_norm(a, dim=0).log2()
    scale = torch.exp2((ratio / 2).round())
    return a * scale, b / scale[:, None]


def ascend(a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], seed: int) -> float:
    """A value that some D reaches: u, v and D of u' A D B v in turn, each the best for the other two.

    The starts: the top pair of singular vectors of A B, and random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(b.shape[1], STARTS, generator=generator, dtype=b.dtype).to(b.device)
    for _ in range(20):  # the first start goes on to the top singular vector of A B
        v[:, :1] = _unit(b.T @ (a.T @ (a @ (b @ v[:, :1]))))
    through = b @ v
    mask = torch.ones_like(through)
    mask[:, STARTS // 2 :] = torch.randint(0, 2, mask[:, STARTS // 2 :].shape, generator=generator).to(mask)
    best = torch.zeros(STARTS, dtype=b.dtype, device=b.device)
    for step in range(ASCENT_STEPS):
        back = a.T @ _unit(a @ (mask * through))
        mask = (back * through > 0).to(b.dtype)
        v = _unit(b.T @ (mask * back))
        through = b @ v
        value = torch.linalg.vector_norm(a @ (mask * through), dim=0)
        if step > 10 and bool((value <= best * (1 + 1e-7)).all()):
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
    log_t = torch.linalg.vector_norm(b, dim=1).log() - torch.linalg.vector_norm(a, dim=0).log()
    if min(a.shape[1], a.shape[0] + b.shape[1]) > SMALL:
        return _by_subspace(a, b, log_t)
    for hardness in (30.0, 300.0, 3000.0, 30000.0):
        log_t = _by_eigenvalues(a, b, log_t, hardness)
    return log_t


def _by_eigenvalues(
    a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], log_t: Float[Tensor, "h"], hardness: float
) -> Float[Tensor, "h"]:
    """L-BFGS on a soft maximum of all eigenvalues; d lambda / d log T_m = (T^(1/2) A'w1)_m^2 - (T^(-1/2) B w2)_m^2."""
    point = log_t.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([point], max_iter=60, history_size=20, line_search_fn="strong_wolfe")
    reference = None

    def value() -> float:
        nonlocal reference
        values, entering, leaving = _eigen(a, b, point.detach())
        if reference is None:
            reference = float(values[-1])
        point.grad = (
            (leaving.square() - entering.square()) @ torch.softmax(hardness * values / reference, 0) / reference
        )
        return float(torch.logsumexp(hardness * values / reference, 0) / hardness)

    optimiser.step(value)
    return point.detach()


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
        w = torch.nn.functional.normalize(joined @ z, dim=0)
    return values, joined[m:].T @ w[m:], joined[:m].T @ w[:m]


def _by_subspace(
    a: Float[Tensor, "m h"], b: Float[Tensor, "h d"], log_t: Float[Tensor, "h"], steps: int = 60
) -> Float[Tensor, "h"]:
    """Adam on the largest eigenvalues, estimated by warm-started subspace iteration: large layers."""
    best_value, best_point, point = torch.inf, log_t, log_t.clone().requires_grad_()
    optimiser = torch.optim.Adam([point], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(len(log_t), 12, generator=generator, dtype=b.dtype).to(b.device)
    for step in range(steps):
        root = (point.detach() / 2).exp()[:, None]
        for _ in range(20 if step == 0 else 2):
            z = torch.linalg.qr(z).Q
            leaving, entering = root * (a.T @ (a @ (root * z))), b @ (b.T @ (z / root)) / root
            old, z = z, leaving + entering
        values, turn = torch.linalg.eigh(old.T @ z)
        if float(values[-1]) < best_value:
            best_value, best_point = float(values[-1]), point.detach().clone()
        share = torch.softmax(200 * values / values[-1], 0)
        point.grad = ((old @ turn) * ((leaving - entering) @ turn)) @ share / values[-1]
        optimiser.step()
        decay.step()
    return best_point
