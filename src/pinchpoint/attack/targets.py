"""Which classes a targeted attack aims at, and in which order samples and targets are attacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pinchpoint.errors import ThreatError


def likeliest(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"], count: int
) -> Int[Tensor, "batch targets"]:
    """The classes with the largest logits other than the label, at most ``count`` of them, likeliest first.

    Raises:
        ThreatError: for a count below one.

    >>> likeliest(torch.tensor([[5.0, 1.0, 3.0]]), torch.tensor([0]), 9).tolist()
    [[2, 1]]
    """
    if count < 1:
        raise ThreatError("a targeted attack needs one target or more", count, "use for example 9")
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def attack_pairs(
    attack: Callable[[Int[Tensor, "rows"], range], tuple[Tensor, Tensor]],
    targets: int,
    batch_size: int,
    best: Float[Tensor, "batch *shape"],
    score: Float[Tensor, "batch"],
    fallen: Bool[Tensor, "batch"],
) -> None:
    """Attack what stands with one target after the other; where few stand, with several at once.

    A pair of sample and target costs the same alone or among others, as long as the batch is not full; so as many ranks
    of targets are taken together as fill it. What a sample fell to is skipped from then on.

    Args:
        attack: (rows, ranks) -> for each pair, all rows with the first rank, then with the second ..., the point found
            and how good it is, infinite where it is misclassified.
        targets: number of ranks.
        batch_size: pairs at once; never fewer than the samples standing.
        best, score, fallen: of each sample so far; changed in place.
    """
    rank = 0
    while rank < targets and not bool(fallen.all()):
        rows = torch.nonzero(~fallen).squeeze(1)
        ranks = range(rank, min(rank + max(1, batch_size // len(rows)), targets))
        points, goodness = attack(rows, ranks)
        value, which = goodness.reshape(len(ranks), len(rows)).max(0)
        better = value > score[rows]
        pair = which * len(rows) + torch.arange(len(rows), device=rows.device)
        best[rows[better]], score[rows[better]] = points[pair[better]], value[better]
        fallen[rows] = torch.isposinf(value)
        rank = ranks.stop
