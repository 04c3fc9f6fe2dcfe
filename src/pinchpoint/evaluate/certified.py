"""Certificates put to the test: some certified samples are attacked as well, and none of them may change its class.

A bound holds for every input, so an attack that succeeds inside a certified ball shows a fault of this package. It is looked
for wherever certificates are printed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, standard_ensemble
from pinchpoint.errors import ContradictionError
from pinchpoint.evaluate.logits import logits_of, misclassified
from pinchpoint.evaluate.robust_accuracy import robust_accuracy
from pinchpoint.measure.layers import float64_copy

LEAST, SHARE = 16, 0.1
"""Certified samples that are attacked: a tenth of them, and this many where there are as many."""


def chosen(certified: Tensor, *, seed: int = 0) -> Tensor:
    """The rows that are attacked though they are certified: all where they are few, else a tenth, drawn by the seed.

    >>> chosen(torch.tensor([False, True, True])).tolist()
    [1, 2]
    >>> len(chosen(torch.ones(100, dtype=torch.bool))), len(chosen(torch.ones(1000, dtype=torch.bool)))
    (16, 100)
    """
    rows = torch.nonzero(certified.cpu()).flatten()
    count = min(len(rows), max(LEAST, math.ceil(SHARE * len(rows))))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:count]].sort().values


def attack_certified(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    radii: Float[Tensor, "batch"],
    *,
    seed: int = 0,
) -> int:
    """Attack samples within the ball they are certified for, by the quick ensemble; how many withstood it.

    An example counts against a certificate where the same network in float64, of which certificates speak, changes its
    answer as well: what rounding to float32 does at the rim of a ball is no fault of a bound.

    Args:
        model: returns logits, in eval mode.
        x, y: samples that are certified, with their labels.
        threat: the ball; its budget is no larger than any radius.
        radii: the certified ones.
        seed: of the attacks.

    Raises:
        ContradictionError: where one changes its class, which asks for a report.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x, y = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
    >>> attack_certified(model, x, y, Threat("linf", 0.3), torch.tensor([0.4]))
    1
    """
    if len(x) == 0:
        return 0
    attacks = standard_ensemble(model, x, version="quick", seed=seed)
    verdict = robust_accuracy(model, x, y, threat, attacks=attacks)
    rows = torch.nonzero(verdict.fallen).flatten()
    if len(rows) == 0:
        return len(x)
    exact = logits_of(float64_copy(model).to(x.device), verdict.adversarial[rows].double())
    wrong = rows[misclassified(exact, y.to(x.device)[rows])]
    order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[threat.norm]
    moved = (verdict.adversarial[wrong].double() - x[wrong].double()).flatten(1).norm(order, dim=1)
    limits = radii.to(x.device).double()[wrong]
    contradicted = moved <= limits
    if bool(contradicted.any()):
        place = int(torch.nonzero(contradicted)[0])
        raise ContradictionError(
            "a certified sample must keep its class under attack",
            f"one that changes it at a distance of {float(moved[place]):.6g} in {threat.norm}, though it is certified up to "
            f"{float(limits[place]):.6g}",
        )
    return len(x)
