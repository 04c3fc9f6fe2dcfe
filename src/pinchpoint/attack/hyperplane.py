"""The shortest way to a hyperplane inside a box, in l_inf, l_2 and l_1: what FAB does at every step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.records import ThreatNorm


def shortest_move(
    normal: Float[Tensor, "batch d"], gap: Float[Tensor, "batch"], room: Float[Tensor, "batch d"], norm: ThreatNorm
) -> Float[Tensor, "batch d"]:
    """argmin ||move|| with normal . move = gap and each entry at most its room (Croce & Hein 2020, FAB, equation 3).

    ``room`` is how far an entry may go in the direction in which it helps, the sign of gap * normal. Where the plane
    cannot be reached, all room is used, which comes nearest to it.

    l_inf and l_2: entries move at a pace of 1 or |normal_i| until they meet the box; the time when the plane is reached
    follows from the sorted times when they do. l_1: the entries with the largest |normal_i| go first, one after another.

    >>> move = shortest_move(torch.tensor([[3.0, -4.0]]), torch.tensor([5.0]), torch.full((1, 2), 9.0), "l2")
    >>> [round(value, 4) for value in move[0].tolist()]
    [0.6, -0.8]
    """
    weight, distance = normal.abs(), gap.abs()[:, None]
    tiny = torch.finfo(normal.dtype).tiny
    if norm == "l1":
        weight, order = weight.sort(1, descending=True)
        room = room.gather(1, order)
        left = distance - _before(_product(weight, room))
        sorted_size = torch.minimum((left / weight.clamp_min(tiny)).clamp_min(0.0), room)
        size = torch.zeros_like(sorted_size).scatter(1, order, sorted_size)
    else:
        pace = torch.ones_like(weight) if norm == "linf" else weight
        until, order = (room / pace.clamp_min(tiny)).sort(1)
        done = _before(_product(weight, room).gather(1, order))
        speed = (weight * pace).gather(1, order).flip(1).cumsum(1).flip(1)  # of those not yet at the box
        reached = done + _product(speed, until) >= distance
        first = reached.to(torch.uint8).argmax(1, keepdim=True)
        time = ((distance - done.gather(1, first)) / speed.gather(1, first).clamp_min(tiny)).clamp_min(0.0)
        time = torch.where(reached.any(1, keepdim=True), time, torch.finfo(normal.dtype).max)
        size = torch.minimum(time * pace, room)
    return torch.where(normal == 0, 0.0, size * normal.sign() * gap.sign()[:, None])


def _product(weight: Tensor, room: Tensor) -> Tensor:
    """Entrywise, where room may be infinite and a weight of zero has nothing to give."""
    return torch.where(weight > 0, weight * room, 0.0)


def _before(amounts: Tensor) -> Tensor:
    """Sums over the entries before each one."""
    return torch.nn.functional.pad(amounts[:, :-1].cumsum(1), (1, 0))
