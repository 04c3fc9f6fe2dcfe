"""Robust accuracy against eps: the smallest budget that flips each sample, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, followable, logit_scale, minimum_norm, scaled_log_odds
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.attack.objectives import dlr, margin
from pinchpoint.attack.samples import check_logits, check_samples, check_threats
from pinchpoint.errors import DataError, ThreatError
from pinchpoint.evaluate.default_attacks import Attack
from pinchpoint.evaluate.logits import BATCH, in_batch, logits_of, misclassified
from pinchpoint.evaluate.model_checks import one_answer
from pinchpoint.evaluate.robust_accuracy import robust_accuracy
from pinchpoint.evaluate.verdict import Verdict, distances, within
from pinchpoint.records import ThreatNorm


def smallest_eps(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    norm: ThreatNorm,
    eps_max: float,
    *,
    box: tuple[float, float] | None = (0.0, 1.0),
    steps: int = 30,
    seed: int = 0,
    batch_size: int = BATCH,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch *shape"]]:
    """The smallest budget at which each sample was found to fall, and the example; both checked as any verdict is.

    A model without a gradient is searched along differences of its answers.

    An upper bound on the true distance to the boundary. ``(eps > budget).mean()`` is the robust accuracy at that budget.

    Args:
        model: returns logits; put into eval mode and back.
        x: inputs in the box.
        y: labels.
        norm: in which budgets are measured.
        eps_max: the largest budget of interest.
        box: smallest and largest value an input may take.
        steps: gradient steps with each of two objectives (``pinchpoint.attack.minimum_norm``).
        seed: of the search.
        batch_size: samples at a time.

    Returns:
        Budgets in float64: 0 where misclassified without attack, infinite where nothing was found up to ``eps_max``.
        Examples: the input itself where the budget is 0 or infinite.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    >>> eps, _ = smallest_eps(model, x, torch.tensor([0, 0, 0]), "linf", 0.2)
    >>> [round(value, 2) for value in eps.tolist()]
    [0.1, inf, 0.0]
    """
    threat = Threat(norm, eps_max, box)
    x, y = check_samples(x, y, threat)
    with eval_mode(model), one_answer(model, x):
        logits = logits_of(model, x, batch_size)
        check_logits(logits, y, len(x))
        objectives = (scaled_log_odds(logit_scale(logits)), dlr if logits.shape[1] >= 3 else margin)
        led = followable(model, x, threat, seed) if eps_max > 0 else model
        wrong = misclassified(logits, y)
        eps = torch.where(wrong, 0.0, torch.inf).double()
        examples = x.clone()
        for rows in torch.nonzero(~wrong).squeeze(1).split(batch_size):
            if len(rows) == 0:
                break
            with in_batch(rows, len(x)):
                found = minimum_norm(led, x[rows], y[rows], threat, steps=steps, objectives=objectives, seed=seed)
                found = found.float().to(x.dtype)
                fell = misclassified(logits_of(model, found), y[rows]) & within(found, x[rows], threat)
            took = rows[fell]
            eps[took] = distances(found[fell], x[took], norm).clamp_max(eps_max)
            examples[took] = found[fell]
        return eps, examples


def robust_curve(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threats: Sequence[Threat],
    *,
    attacks: dict[str, Attack] | None = None,
    known: Verdict | None = None,
) -> list[Verdict]:
    """Verdicts for rising budgets of one norm. An example found at a small budget counts at every larger one.

    Without ``attacks`` one search for the smallest budget of each sample answers all budgets (``smallest_eps``). With
    them, each budget attacks only what the smaller ones left standing; failed attempts of the budget before, stretched
    to the new one, are tried before any attack. Either way the curve never rises. ``known`` is a verdict at a smaller
    budget to start from.

    Raises:
        ThreatError: where norms or boxes differ or the budgets do not rise.
        DataError, ModelError: as in ``robust_accuracy``.
    """
    check_threats(threats)
    points = [*([] if known is None else [known.threat]), *threats]
    if any(a.norm != b.norm or a.box != b.box or a.eps >= b.eps for a, b in pairwise(points)):
        raise ThreatError(
            "a curve needs one norm, one box and rising budgets", [str(t) for t in points], "sort the budgets"
        )
    x, y = check_samples(x, y)
    if known is not None and known.adversarial.shape != x.shape:
        raise DataError(
            f"the known verdict must be that of these inputs, of shape {tuple(x.shape)}",
            tuple(known.adversarial.shape),
            "leave it out",
        )
    if not threats:
        return []
    with one_answer(model, x):
        if attacks is None:
            return _searched(model, x, y, threats, known)
        verdicts: list[Verdict] = []
        for threat in threats:
            candidates = None if known is None else _stretch(x, known, threat)
            known = robust_accuracy(model, x, y, threat, attacks=attacks, known=candidates)
            verdicts.append(known)
        return verdicts


def _searched(
    model: nn.Module, x: Tensor, y: Tensor, threats: Sequence[Threat], known: Verdict | None
) -> list[Verdict]:
    """Verdicts read off the smallest budget of each sample."""
    eps, examples = smallest_eps(model, x, y, threats[0].norm, threats[-1].eps, box=threats[0].box)
    names = ["clean" if value == 0 else "minimum-norm" for value in eps.tolist()]
    if known is not None:
        taken = known.fallen & (known.threat.eps < eps)
        eps, examples = torch.where(taken, known.threat.eps, eps), examples.clone()
        examples[taken] = known.adversarial[taken]
        names = ["known" if take else name for take, name in zip(taken.tolist(), names, strict=True)]
    verdicts = []
    for threat in threats:
        fallen = eps <= threat.eps
        adversarial = torch.where(fallen.reshape(-1, *(1,) * (x.ndim - 1)), examples, x)
        stage = [name if fell else "survived" for name, fell in zip(names, fallen.tolist(), strict=True)]
        verdicts.append(Verdict(threat, fallen, adversarial, tuple(stage), 0, ("minimum-norm",)))
    return verdicts


def _stretch(x: Tensor, known: Verdict, threat: Threat) -> Tensor:
    """What fooled the model at a smaller budget, and failed attempts carried on to the larger one."""
    factor = threat.eps / known.threat.eps if known.threat.eps > 0 else 1.0
    stretched = threat.project(x + factor * (known.adversarial - x), x)
    return torch.where(known.fallen.reshape(-1, *(1,) * (x.ndim - 1)), known.adversarial, stretched)
