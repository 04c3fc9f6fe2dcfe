"""What an adversary may do: the one place where an l_p ball is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ThreatError
from pinchpoint.records import ThreatNorm
from pinchpoint.utils.numbers import budget, threat

_LARGEST = torch.finfo(torch.float32).max / 4.0
_SHRINK = 1.0 - 1e-6  # keeps float32 rounding of a projected l2 or l1 perturbation inside the ball
_SHARE = 0.01  # of the entries that an l1 step moves (Tramer & Boneh 2019)


@dataclass(frozen=True)
class Threat:
    """All x' with ||x' - x|| <= eps and every entry inside the box.

    Args:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: budget in input units, zero or more.
        box: smallest and largest value an input may take; None for no box.

    Raises:
        ThreatError: for an unknown norm, a negative or infinite eps, an empty box.

    >>> threat = Threat("linf", 0.5)
    >>> threat.project(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.2, 0.3]])).tolist()
    [[0.699999988079071, 0.0]]
    """

    norm: ThreatNorm
    eps: float
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(ThreatNorm):
            raise ThreatError(
                f"norm must be one of {', '.join(get_args(ThreatNorm))}", self.norm, "write linf, l2 or l1"
            )
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

        >>> print(Threat.parse("linf:8/255"), Threat.parse("l2: 0.5"))
        linf:8/255 l2:0.5
        """
        norm, eps = threat(text, get_args(ThreatNorm))
        return cls(norm, eps, box)  # type: ignore[arg-type]  # ``threat`` refuses unknown norms

    def __str__(self) -> str:
        parts = budget(self.norm, self.eps)
        return f"{self.norm}:{parts}" if "/" in parts else f"{self.norm}:{self.eps:.4g}"

    def length(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        """Each sample's perturbation measured in the threat's norm.

        >>> Threat("l1", 1.0).length(torch.tensor([[3.0, -4.0]])).item()
        7.0
        """
        lengths: Tensor = torch.linalg.vector_norm(
            delta.flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm], 1
        )
        return lengths

    def diagonal(self, entries: int) -> float:
        """The distance between opposite corners of the box, for inputs of so many entries; infinite where there is none.

        >>> Threat("l2", 0.5).diagonal(4)
        2.0
        """
        if self.box is None:
            return math.inf
        return (self.box[1] - self.box[0]) * {"linf": 1.0, "l2": math.sqrt(entries), "l1": float(entries)}[self.norm]

    def project(self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]) -> Tensor:
        """The nearest point of the ball, then of the box; l1: the nearest point of both at once (Croce & Hein 2021).

        x must lie in the box; then the result is inside both.
        """
        if self.norm == "linf":
            return self.clip(torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps))
        delta = x_adv - x
        if self.norm == "l1":
            delta = _onto_l1(delta, self.room(x, delta), self.eps)
        factor = self.eps * _SHRINK / self.length(delta).clamp_min(torch.finfo(x.dtype).tiny)
        return self.clip(x + delta * _like(factor.clamp_max(1.0), delta))

    def clip(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        """Entries cut to the box."""
        return x if self.box is None else x.clamp(*self.box)

    def room(self, x: Float[Tensor, "batch *shape"], direction: Float[Tensor, "batch *shape"]) -> Tensor:
        """How far each entry of x may go in the direction's sign before it meets the box; infinite where there is none.

        >>> Threat("l1", 1.0).room(torch.tensor([[0.25, 0.25]]), torch.tensor([[-3.0, 1.0]])).tolist()
        [[0.25, 0.75]]
        """
        if self.box is None:
            return torch.full_like(x, torch.inf)
        low, high = self.box
        return torch.where(direction > 0, high - x, x - low).clamp_min(0.0)

    def random_start(self, x: Float[Tensor, "batch *shape"], generator: torch.Generator) -> Tensor:
        """x moved to the ball's surface at random (Croce & Hein 2020, 2021), then projected.

        linf: uniform in the cube, scaled to touch its surface; l2: Gaussian direction of length eps; l1: Gaussian draw,
        projected. The generator gives one number a call; a sample's draw follows from that number and the sample's own
        values, so it is the same in whatever batch, and at whatever place in it, the sample is attacked.
        """
        draw = own_draws(x, generator, uniform=self.norm == "linf")
        if self.norm != "l1":
            draw = draw * _like(self.eps / self.length(draw).clamp_min(1e-12), draw)
        return self.project(x + draw.to(x), x)

    def direction(
        self,
        gradient: Float[Tensor, "batch *shape"],
        *,
        at: Float[Tensor, "batch *shape"] | None = None,
        share: float | Float[Tensor, "batch"] = _SHARE,
    ) -> Tensor:
        """An ascent direction of length 1: the gradient's sign, or the gradient over its l2 norm.

        l1: the sign of the largest entries, ``share`` of them and at least one (with one it is the steepest direction; a
        step along it would soon be stopped by the box). Where a point is given (``at``), l1 leaves out the entries that
        stand at the box's edge and point out of it.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            scaled = gradient / _like(largest, gradient)  # tiny gradients would underflow when squared
            return scaled / _like(self.length(scaled).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        if at is not None:
            gradient = torch.where(self.room(at, gradient) > 0, gradient, 0.0)
        size = gradient.flatten(1).abs()
        entries = size.shape[1]
        count = torch.as_tensor(share * entries, device=size.device).long().clamp(1, entries).expand(len(size))
        threshold = size.sort(1, descending=True).values.gather(1, count[:, None] - 1)
        sign = torch.where(size >= threshold, gradient.flatten(1).sign(), 0.0)
        return (sign / sign.abs().sum(1, keepdim=True).clamp_min(1.0)).reshape(gradient.shape)

    def furthest(self, x: Float[Tensor, "batch *shape"], gradient: Float[Tensor, "batch *shape"]) -> Tensor:
        """The point reached by one step of length eps along the gradient.

        linf and l1: exactly the point of ball and box with the largest inner product with the gradient (l1: the largest
        entries go to the box's edge, one after the other, until eps is spent); l2: that of the ball, cut to the box.

        >>> Threat("l1", 0.5).furthest(torch.tensor([[0.75, 0.5]]), torch.tensor([[2.0, -1.0]])).round(decimals=4).tolist()
        [[1.0, 0.25]]
        """
        if self.norm != "l1":
            return self.project(x + self.eps * self.direction(gradient), x)
        size, order = gradient.flatten(1).abs().sort(1, descending=True)
        room = torch.where(size > 0, self.room(x, gradient).flatten(1).gather(1, order), 0.0)
        spent = room.clamp_max(self.eps).cumsum(1) - room.clamp_max(self.eps)
        moved = torch.minimum(room, (self.eps - spent).clamp_min(0.0))
        delta = torch.zeros_like(room).scatter(1, order, moved).reshape(x.shape) * gradient.sign()
        return self.project(x + delta, x)


def _like(values: Float[Tensor, "batch"], x: Float[Tensor, "batch *shape"]) -> Tensor:
    """One value a sample, shaped to broadcast."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def own_draws(x: Tensor, generator: torch.Generator, *, uniform: bool) -> Tensor:
    """Random numbers shaped like x, uniform in [-1, 1] or normal: a sample's depend on its values, not on its batch."""
    key = int(torch.randint(2**62, (1,), generator=generator, device=generator.device)).to_bytes(8)
    own, rows = torch.Generator(generator.device), []
    for row in x.detach().float().cpu().contiguous().numpy():
        own.manual_seed(int.from_bytes(blake2b(row.tobytes(), digest_size=8, key=key).digest()) >> 1)
        draw = (torch.rand if uniform else torch.randn)(x.shape[1:], generator=own, device=own.device)
        rows.append(2.0 * draw - 1.0 if uniform else draw)
    return torch.stack(rows)


def _onto_l1(delta: Float[Tensor, "batch *shape"], room: Float[Tensor, "batch *shape"], eps: float) -> Tensor:
    """The nearest perturbation with sum |delta_i| <= eps and |delta_i| <= room_i (Croce & Hein 2021, Proposition 2.1).

    It is sign(delta_i) min(max(|delta_i| - shift, 0), room_i). The sum of these falls piecewise linearly in the shift,
    with slope -(entries strictly between their two bends), so the shift follows from the sorted bends.
    """
    size, limit = delta.flatten(1).abs(), room.flatten(1)
    outside = torch.minimum(size, limit).sum(1) > eps
    a, cap = size[outside], limit[outside]
    bends, order = torch.cat([(a - cap).clamp_min(0.0), a], 1).sort(1)
    slope = torch.where(order < a.shape[1], -1.0, 1.0).to(a).cumsum(1)
    steps = slope[:, :-1] * bends.diff(dim=1)
    sums = torch.minimum(a, cap).sum(1, keepdim=True) + torch.cat([torch.zeros_like(a[:, :1]), steps], 1).cumsum(1)
    last = (sums > eps).sum(1, keepdim=True).clamp(1, bends.shape[1]) - 1  # the last bend still outside the ball
    over = (sums.gather(1, last) - eps).clamp_min(0.0)
    shift = bends.gather(1, last) + over / -slope.gather(1, last).clamp_max(-1.0)
    size = size.clone()
    size[outside] = (a - shift).clamp_min(0.0)
    return torch.minimum(size, limit).reshape(delta.shape) * delta.sign()
