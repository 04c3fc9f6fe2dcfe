"""Symmetric alpha-stable numbers, the heavy-tailed noise of theories of SGD."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def alpha_stable(
    shape: tuple[int, ...],
    alpha: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*shape"]:
    """Independent draws with characteristic function exp(-|t|^alpha), 0 < alpha <= 2.

    Source: J. M. Chambers, C. L. Mallows, B. W. Stuck, A method for simulating stable random variables, JASA 1976. With
    alpha = 2 the draws are Gaussian of variance 2, with alpha = 1 Cauchy.

    >>> alpha_stable((2, 3), 1.5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    angle = math.pi * (torch.rand(shape, generator=generator, device=device, dtype=dtype) - 0.5)
    waiting = torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
    if alpha == 1.0:
        return torch.tan(angle)
    outer = torch.sin(alpha * angle) / torch.cos(angle).pow(1.0 / alpha)
    return outer * (torch.cos((1.0 - alpha) * angle) / waiting).pow((1.0 - alpha) / alpha)


def add_noise(parameters: Iterable[Tensor], alpha: float, scale: float) -> None:
    """Add ``scale`` times alpha-stable draws, from the global RNG, to every parameter that is trained."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                draws = alpha_stable(tuple(parameter.shape), alpha, device=parameter.device)
                parameter.add_(draws.to(parameter.dtype), alpha=scale)
