"""The standard ensemble (AutoAttack, Croce & Hein 2020): four attacks that fail for different reasons, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack.apgd import apgd, targeted_apgd
from pinchpoint.attack.differences import pgd_by_differences
from pinchpoint.attack.fab import fab
from pinchpoint.attack.gradient import at_once, attacking
from pinchpoint.attack.gradient_doubt import Doubt, gradient_doubt
from pinchpoint.attack.objectives import logit_scale, scaled_log_odds, targeted_dlr, targeted_margin
from pinchpoint.attack.samples import check_logits, check_points
from pinchpoint.attack.square import square
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import ThreatError
from pinchpoint.utils.model_output import answer

Attack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> x_adv."""

Version = Literal["standard", "quick"]

_BATCH = 1024
_QUERIES = 1000  # of Square where an ensemble without it turns out to need it


def standard_ensemble(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    *,
    version: Version = "standard",
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Attack]:
    """The attacks by name, cheap ones first: what ``robust_accuracy(attacks=...)`` takes.

    ``standard``, as in the paper and the authors' public implementation (fra31/auto-attack): AutoPGD with cross-entropy,
    100 steps; AutoPGD with targeted DLR, 100 steps towards each of 9 targets; FAB, 100 steps towards each of 9 targets;
    Square with 5000 queries. In l1 (Croce & Hein 2021) the first has 5 restarts and the second 5 targets. ``quick``:
    AutoPGD with cross-entropy, 50 steps; AutoPGD with targeted DLR, 50 steps towards each of 3 targets; Square with 300
    queries: about a fourteenth of the passes through the model for a sample that survives, and a weaker search.

    Three things are ours: cross-entropy is raised as ``log_odds``, of logits rescaled where their spread on x is no ordinary
    one (``logit_scale``), so multiplying all logits by a constant changes no verdict; with fewer than four classes, where
    targeted DLR is not defined, the targeted margin stands in, which the name says (``apgd-t-margin``); and where the
    gradient is not the function's (``gradient_doubt``) PGD along differences of answers comes before Square, alone with
    it where there is no gradient at all.

    Args:
        model: returns logits.
        x: inputs on which the scale of the logits and the number of classes are measured.
        version: ``standard`` or ``quick``.
        batch_size: searches at once in the targeted attacks, where fewer samples than that are left.
        seed: of all random starts and windows.

    Raises:
        ThreatError: for an unknown version.
        ModelError: for a model that does not take x or returns no finite logits.

    >>> list(standard_ensemble(nn.Linear(4, 10), torch.rand(5, 4)))
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    >>> list(standard_ensemble(nn.Linear(4, 2), torch.rand(5, 4), version="quick"))
    ['apgd-ce', 'apgd-t-margin', 'square']
    """
    if version not in get_args(Version):
        raise ThreatError("the ensemble's version must be standard or quick", version, "write one of the two")
    logits = _logits(model, x, seed)
    steps, targets, queries = (100, 9, 5000) if version == "standard" else (50, 3, 300)
    cross_entropy = scaled_log_odds(logit_scale(logits))
    name, objective = ("apgd-t", targeted_dlr) if logits.shape[1] >= 4 else ("apgd-t-margin", targeted_margin)

    def untargeted(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        restarts = 5 if version == "standard" and threat.norm == "l1" else 1
        return apgd(model, x, y, threat, steps=steps, restarts=restarts, objective=cross_entropy, seed=seed)

    def targeted(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        count = min(targets, 5) if threat.norm == "l1" else targets
        return targeted_apgd(
            model, x, y, threat, steps=steps, targets=count, objective=objective, batch_size=batch_size, seed=seed
        )

    attacks: dict[str, Attack] = {"apgd-ce": untargeted, name: targeted}
    if version == "standard":
        attacks["fab-t"] = partial(fab, steps=steps, targets=targets, batch_size=batch_size, seed=seed)
    attacks["square"] = partial(square, queries=queries, seed=seed)
    return doubted(attacks, gradient_doubt(model, x, seed=seed), seed)


def doubted(attacks: dict[str, Attack], doubt: Doubt | None, seed: int) -> dict[str, Attack]:
    """The attacks, and what needs no gradient where it is doubted; without those that follow it where there is none."""
    if doubt is None:
        return attacks
    blind: dict[str, Attack] = {"square": attacks.get("square", partial(square, queries=_QUERIES, seed=seed))}
    led = {name: attack for name, attack in attacks.items() if name not in blind} if doubt.differentiable else {}
    return {**led, "pgd-differences": partial(pgd_by_differences, seed=seed), **blind}


def _logits(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    x = check_points(x)
    with attacking(model, seed, x.device), torch.no_grad():
        parts = []
        for part in x.split(at_once(x, _BATCH)):
            logits = answer(model, part)
            check_logits(logits, torch.zeros(len(part), dtype=torch.long, device=x.device), len(part))
            parts.append(logits)
        return torch.cat(parts)
