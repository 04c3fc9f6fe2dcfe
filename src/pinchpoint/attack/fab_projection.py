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

    l_inf and l_2: entries move at a pace of 1 or |normal_i| until they meet the box; Newton's steps find the time when the
    plane is reached. l_1: the entries with the largest |normal_i| go first, one after another.

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
        size = torch.minimum(_time_of_arrival(weight, pace, room, distance) * pace, room)
    return size.clamp_max(torch.finfo(normal.dtype).max) * normal.sign() * gap.sign()[:, None]


def _time_of_arrival(
    weight: Float[Tensor, "batch d"],
    pace: Float[Tensor, "batch d"],
    room: Float[Tensor, "batch d"],
    distance: Float[Tensor, "batch 1"],
) -> Float[Tensor, "batch 1"]:
    """The t with sum_i weight_i min(t pace_i, room_i) = distance; the largest number there is where there is none.

    The sum is concave in t and made of straight pieces, so Newton's steps from 0 rise to t and end on it, without the
    sorting that other solutions need; a handful of steps is usual.
    """
    largest = torch.finfo(weight.dtype).max
    until = room / pace.clamp_min(torch.finfo(weight.dtype).tiny)
    full, speed = _product(weight, room), weight * pace
    time = torch.zeros_like(distance)
    while True:
        moving = (until - time).sign_().clamp_min_(0.0)  # 1 or 0
        pace_of_all = torch.einsum("bd,bd->b", speed, moving)[:, None]
        done = torch.einsum("bd,bd->b", full, 1.0 - moving)[:, None]
        later = ((distance - done) / pace_of_all).nan_to_num(nan=largest, posinf=largest)
        later = torch.maximum(later, time)
        if torch.equal(later, time):
            return time
        time = later


def _product(weight: Tensor, room: Tensor) -> Tensor:
    """Entrywise and finite: room may be infinite, and a weight of zero has nothing to give."""
    largest = torch.finfo(weight.dtype).max
    return (weight * room.clamp_max(largest)).clamp_max(largest)


def _before(amounts: Tensor) -> Tensor:
    """Sums over the entries before each one."""
    return torch.nn.functional.pad(amounts[:, :-1].cumsum(1), (1, 0))
