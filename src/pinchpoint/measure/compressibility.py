"""(q, k, residual)-compressibility and spread of a vector of magnitudes (paper, section 2; definitions 2.1 and 2.2).

For theta in R^n and 1 <= k <= n, theta_k keeps the k largest magnitudes:

    residual(theta, k, q) = ||theta - theta_k||_q / ||theta||_q        (0 where theta = 0)
    spread(theta, k)      = 1 - |theta|_(k) / |theta|_(1)              (0 where theta = 0)

Both are unchanged by theta -> c * theta. Everything runs in float64 and over the last dimension of a batch.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from pinchpoint.errors import ModelError


def sorted_magnitudes(theta: Real[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Magnitudes in float64, descending, scaled so that the largest is 1 (zero vectors stay zero).

    Raises:
        ModelError: where theta is empty, complex, or holds NaN or infinite values.
    """
    if theta.ndim == 0 or theta.shape[-1] == 0:
        raise ModelError("theta must have at least one entry", f"shape {tuple(theta.shape)}", "give a non-empty vector")
    if theta.is_complex():
        raise ModelError("theta must be real", str(theta.dtype), "give magnitudes, e.g. theta.abs()")
    magnitudes = theta.detach().to(torch.float64).abs()
    if not bool(torch.isfinite(magnitudes).all()):
        raise ModelError(
            "weights must be finite", "NaN or infinite values", "check that training did not diverge before measuring"
        )
    magnitudes = magnitudes.sort(dim=-1, descending=True).values
    top = magnitudes[..., :1]
    return magnitudes / torch.where(top > 0, top, torch.ones_like(top))


def residual_curve(theta: Real[Tensor, "*batch n"], q: float = 1.0) -> Float[Tensor, "*batch n"]:
    """Residuals for k = 1 ... n at once; entry k - 1 belongs to k, and the last one is 0.

    Args:
        theta: magnitudes or signed values; batched over leading dimensions.
        q: order of the norm, q > 0 (the paper uses 1).

    >>> residual_curve(torch.tensor([3.0, 0.0, -1.0])).tolist()
    [0.25, 0.0, 0.0]
    """
    if not 0 < q < math.inf:
        raise ModelError("q must be positive and finite", q, "use q=1 as the paper does")
    magnitudes = sorted_magnitudes(theta)
    if q != 1:
        return _residual_curve_in_logs(magnitudes, q)
    tails = magnitudes.flip(-1).cumsum(-1).flip(-1)  # tails[k] = sum of what is left after the k largest
    total = tails[..., :1]
    left = torch.cat([tails[..., 1:], torch.zeros_like(total)], dim=-1)
    return left / torch.where(total > 0, total, torch.ones_like(total))


def _residual_curve_in_logs(magnitudes: Float[Tensor, "*batch n"], q: float) -> Float[Tensor, "*batch n"]:
    """The same for any q: powers with a large q would underflow."""
    tails = (q * magnitudes.log()).flip(-1).logcumsumexp(-1).flip(-1)
    total = tails[..., :1]
    shares = torch.where(total > -torch.inf, ((tails[..., 1:] - total) / q).exp(), 0.0)
    return torch.cat([shares, torch.zeros_like(total)], dim=-1)


def residual(theta: Real[Tensor, "*batch n"], k: int, q: float = 1.0) -> Float[Tensor, "*batch"]:
    """Share of ||theta||_q that the k largest magnitudes leave out.

    Raises:
        ModelError: where k is outside 1 ... n or q is not positive.

    >>> residual(torch.tensor([4.0, 3.0, 2.0, 1.0]), k=2).item()
    0.3
    """
    curve = residual_curve(theta, q)
    _check_k(k, curve.shape[-1])
    return curve[..., k - 1]


def spread(theta: Real[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch"]:
    """How unequal the k dominant terms are: 1 - |theta|_(k) / |theta|_(1).

    >>> spread(torch.tensor([4.0, 3.0, 2.0, 1.0]), k=2).item()
    0.25
    """
    magnitudes = sorted_magnitudes(theta)
    _check_k(k, magnitudes.shape[-1])
    return torch.where(magnitudes[..., 0] > 0, 1.0 - magnitudes[..., k - 1], 0.0)


def k_for_residual(theta: Real[Tensor, "*batch n"], target: float, q: float = 1.0) -> Int[Tensor, "*batch"]:
    """The smallest k whose residual is at most ``target``.

    >>> k_for_residual(torch.tensor([4.0, 3.0, 2.0, 1.0]), target=0.3).item()
    2
    """
    if not 0.0 <= target <= 1.0:
        raise ModelError("a target residual lies in [0, 1]", target, "try 0.1")
    return (residual_curve(theta, q) > target).sum(-1) + 1


def dominant_terms(share: float, n: int) -> int:
    """ceil(share * n), at least 1, not misled by rounding: 0.07 of 100 is 7.

    >>> dominant_terms(0.07, 100), dominant_terms(0.1, 11)
    (7, 2)
    """
    return max(1, math.ceil(share * n * (1.0 - 1e-12)))


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ModelError(f"k must lie in 1 ... {n}, the number of terms", k, "choose k as a share of the terms")
