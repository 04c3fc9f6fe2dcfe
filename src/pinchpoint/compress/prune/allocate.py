"""How many units each group keeps.

Every allocation puts a price on each group's next removal and takes the cheapest removals of all groups until the wanted
number is reached. With m of a group's n units removed,

    uniform   (m - 1/2) / n                       Webster's apportionment: each group gives ratio * n, rounded
    global    score of the m-th smallest unit     one threshold over all scores (divided by their mean in the group)
    residual  ||theta - theta_k||_q / ||theta||_q, k = n - m, theta the group's scores (theory.md, sections 2 and 8)

Prices rise with m, so the last price paid is the threshold: for ``residual``, the smallest common target at which every
group, keeping the smallest k that meets it, gives as many units as wanted. That is what bisecting the target converges
to; sorting finds it exactly, and where several groups would step at that very target, only as many as needed do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pinchpoint.errors import ConfigError
from pinchpoint.measure.compressibility import residual_curve

Allocation = Literal["uniform", "global", "residual"]
"""How the removals are spread over the groups."""


class Shares(NamedTuple):
    """How many units each group keeps, and the last price paid (None where nothing is removed)."""

    kept: dict[str, int]
    price: float | None


def prices(
    scores: Float[Tensor, "units"], allocation: Allocation, *, q: float = 1.0, normalise: bool = True
) -> Float[Tensor, "removals"]:
    """What the first, second ... removal from a group costs; its last unit is not for sale.

    Args:
        scores: importance of the units, zero or more.
        allocation: ``uniform``, ``global`` or ``residual``.
        q: of the residual.
        normalise: divide the scores by their mean, for ``global``.

    >>> prices(torch.tensor([4.0, 1.0, 3.0, 2.0]), "residual").tolist()
    [0.1, 0.3, 0.6]
    >>> prices(torch.tensor([4.0, 1.0, 3.0, 2.0]), "uniform").tolist()
    [0.125, 0.375, 0.625]
    """
    if allocation not in get_args(Allocation):
        raise ConfigError(f"allocation must be one of {', '.join(get_args(Allocation))}", allocation, "choose one")
    n = len(scores)
    if allocation == "uniform":
        return (torch.arange(1, n, dtype=torch.float64, device=scores.device) - 0.5) / n
    if allocation == "residual":
        return residual_curve(scores, q)[:-1].flip(0)
    ascending = scores.double().sort().values
    mean = ascending.mean() if normalise else ascending.new_tensor(1.0)
    return ascending[:-1] / torch.where(mean > 0, mean, 1.0)


def share(prices: Mapping[str, Float[Tensor, "_"]], removals: int) -> Shares:
    """Take the ``removals`` cheapest; of equal prices, those of earlier groups.

    >>> share({"a": torch.tensor([0.1, 0.6]), "b": torch.tensor([0.2, 0.3, 0.7])}, 3)
    Shares(kept={'a': 2, 'b': 2}, price=0.30000001192092896)
    """
    kept = {name: len(own) + 1 for name, own in prices.items()}
    if removals == 0:
        return Shares(kept, None)
    together = torch.cat(list(prices.values()))
    price = together.kthvalue(removals).values
    left = removals - int((together < price).sum())  # how many of those at the very price are needed
    for name, own in prices.items():
        equal = min(left, int((own == price).sum()))
        kept[name] -= int((own < price).sum()) + equal
        left -= equal
    return Shares(kept, float(price))


def allocate(
    scores: Mapping[str, Float[Tensor, "_"]],
    ratio: float,
    allocation: Allocation,
    *,
    q: float = 1.0,
    normalise: bool = True,
    size: Callable[[Mapping[str, int]], float] | None = None,
) -> Shares:
    """How many units each group keeps, so that ``ratio`` of all units go: exactly, rounded to a whole unit.

    Args:
        scores: importance of each group's units.
        ratio: 0 <= ratio < 1.
        allocation, q, normalise: see ``prices``.
        size: measures what groups of given sizes come to (parameters, say) and never rises as units go. With it, ratio is
            of ``size`` instead of units, and met as closely as one unit allows.

    Raises:
        ConfigError: for a ratio outside [0, 1), and one that would leave a group without units.

    >>> allocate({"a": torch.tensor([8.0, 1.0, 1.0]), "b": torch.tensor([1.0, 1.0, 1.0])}, 0.5, "residual").kept
    {'a': 1, 'b': 2}
    """
    check_ratio(ratio)
    priced = {name: prices(own, allocation, q=q, normalise=normalise) for name, own in scores.items()}
    most = sum(len(own) for own in priced.values())
    if size is None:
        units = most + len(priced)
        removals = round(ratio * units)
        if removals > most:
            raise _collapse(ratio, most / units, len(priced))
        return share(priced, removals)
    whole = size(share(priced, 0).kept)

    def gone(removals: int) -> float:
        return 1.0 - size(share(priced, removals).kept) / whole

    if gone(most) < ratio:
        raise _collapse(ratio, gone(most), len(priced))
    low, high = 0, most  # the smallest number of removals that reaches the ratio lies in low ... high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(middle) >= ratio else (middle + 1, high)
    closer = low > 0 and ratio - gone(low - 1) < gone(low) - ratio
    return share(priced, low - closer)


def strongest(scores: Float[Tensor, "units"], k: int) -> Bool[Tensor, "units"]:
    """Which units stay: the k with the largest scores; of equal ones the first.

    >>> strongest(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist()
    [False, True, True, False]
    """
    stay = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    stay[scores.argsort(descending=True, stable=True)[:k]] = True
    return stay


def check_ratio(ratio: float) -> None:
    """Refuse a ratio outside [0, 1)."""
    if not 0.0 <= ratio < 1.0:
        raise ConfigError("a pruning ratio lies in [0, 1)", ratio, "0.5 removes half of the units")


def _collapse(ratio: float, most: float, groups: int) -> ConfigError:
    return ConfigError(
        f"a pruning ratio must leave every one of the {groups} layers at least one unit, so it is at most {most:.4g}",
        ratio,
        "lower it",
    )
