"""What an adversary may do: the one place where an l_p ball is written."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ThreatError
from pinchpoint.records import Norm

_LARGEST = torch.finfo(torch.float32).max / 4.0
_SHRINK = 1.0 - 1e-6  # keeps float32 rounding of a projected l2 perturbation inside the ball


@dataclass(frozen=True)
class Threat:
    """All x' with ||x' - x|| <= eps and every entry inside the box.

    Args:
        norm: ``linf`` or ``l2``.
        eps: budget in input units, zero or more.
        box: smallest and largest value an input may take; None for no box.

    Raises:
        ThreatError: for an unknown norm, a negative or infinite eps, an empty box.

    >>> threat = Threat("linf", 0.5)
    >>> threat.project(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.2, 0.3]])).tolist()
    [[0.699999988079071, 0.0]]
    """

    norm: Norm
    eps: float
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ThreatError(f"norm must be one of {', '.join(get_args(Norm))}", self.norm, "write linf or l2")
        if not 0 <= self.eps <= _LARGEST:
            raise ThreatError(
                "eps must be zero or more, and finite in float32",
                self.eps,
                "give the budget in input units, for example 8/255",
            )
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ThreatError("the box must be (low, high) with low < high", self.box, "use (0.0, 1.0) for images")

    @classmethod
    def parse(cls, text: str, box: tuple[float, float] | None = (0.0, 1.0)) -> Threat:
        """Read ``norm:eps``; eps may be a fraction.

        >>> Threat.parse("linf:8/255").eps == 8 / 255
        True
        """
        norm, _, eps = text.partition(":")
        try:
            value = float(Fraction(eps.replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ThreatError("a threat is written norm:eps", text, "write for example linf:8/255 or l2:0.5") from None
        return cls(norm, value, box)  # type: ignore[arg-type]  # __post_init__ refuses unknown norms

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps:.4g}"

    def project(self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]) -> Tensor:
        """The nearest point of the ball, then of the box. x must lie in the box; then the result is inside both."""
        if self.norm == "linf":
            moved = torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps)
        else:
            delta = x_adv - x
            length = _lengths(delta)
            moved = x + delta * (self.eps * _SHRINK / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1.0)
        return self.clip(moved)

    def clip(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        """Entries cut to the box."""
        return x if self.box is None else x.clamp(*self.box)

    def random_start(self, x: Float[Tensor, "batch *shape"], generator: torch.Generator) -> Tensor:
        """x moved to the ball's surface at random (Croce & Hein 2020), then projected.

        linf: uniform in the cube, scaled to touch its surface; l2: Gaussian direction of length eps. The draw is on the
        generator's device.
        """
        shape, device = x.shape, generator.device
        if self.norm == "linf":
            draw = 2.0 * torch.rand(shape, generator=generator, device=device) - 1.0
            size = draw.flatten(1).abs().amax(1)
        else:
            draw = torch.randn(shape, generator=generator, device=device)
            size = torch.linalg.vector_norm(draw.flatten(1), dim=1)
        size = size.clamp_min(1e-12).reshape(-1, *(1,) * (x.ndim - 1))
        return self.project(x + (self.eps * draw / size).to(x), x)

    def direction(self, gradient: Float[Tensor, "batch *shape"]) -> Tensor:
        """The steepest ascent direction of length 1: the gradient's sign, or the gradient over its l2 norm."""
        if self.norm == "linf":
            return gradient.sign()
        scale = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / scale.reshape(
            -1, *(1,) * (gradient.ndim - 1)
        )  # tiny gradients would underflow when squared
        return scaled / _lengths(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def _lengths(delta: Tensor) -> Tensor:
    """l2 norm of each sample, shaped to broadcast."""
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norms.reshape(-1, *(1,) * (delta.ndim - 1))
