"""AutoPGD (Croce & Hein 2020, Algorithm 1): PGD with momentum that finds its own step size; untargeted and targeted.

Checkpoints, the two halving conditions, momentum and the restart from the best point are those of the paper. Where its
text and the authors' public implementation (fra31/auto-attack) differ, the implementation is followed: checkpoints are
rounded down and counted in steps done, a window in which exactly the share rho of the steps rose counts as oscillating,
condition 2 waits for the second checkpoint,
and after a restart the next step is compared with the last point evaluated. What is ours: a sample that has fallen
leaves the batch, and the last step takes no gradient.

In l1 the steps are sparse and have no momentum, their sparsity follows that of the best point, and a run begins in balls
of three and two times eps (Croce & Hein 2021, Algorithm 1 and section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.apgd_step import (
    begin,
    checkpoints,
    move,
    reconsider_sparsity,
    reconsider_step,
    remember_best,
    sparse_checkpoints,
)
from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value, value_and_gradient
from pinchpoint.attack.objectives import Objective, TargetedObjective, cross_entropy, targeted_dlr
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.targets import attack_pairs, likeliest
from pinchpoint.attack.threat import Threat

_REPACK = 0.1  # fallen share of the batch at which the survivors are gathered
_WIDER = ((3.0, 0.3), (2.0, 0.3))  # l1: balls to begin in (times eps), and the share of the steps spent in each


def apgd(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = cross_entropy,
    drop_fallen: bool = True,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """AutoPGD from random starts.

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box.
        steps: iterations a restart (100 in the paper's ensemble).
        restarts: random starts; each attacks only what the ones before left standing.
        objective: ``cross_entropy`` for AutoPGD-CE, ``dlr`` for AutoPGD-DLR.
        drop_fallen: a sample leaves the batch as soon as it is misclassified. False goes on raising the objective.
        seed: of the random starts (drawn for the whole batch, so dropping changes nothing for the others) and of
            whatever the model draws; the global RNG is left as it was.

    Returns:
        For every sample a misclassified point of the threat if one was found, else the one with the largest objective;
        with ``drop_fallen=False`` always the one with the largest objective.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = apgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("l2", 0.2), steps=10)
    >>> model(x_adv).argmax(1).item()
    1
    """
    best, fooling = _attack(model, x, y, threat, steps, restarts, objective, drop_fallen, seed)
    return fooling if drop_fallen else best


def apgd_to_the_end(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = cross_entropy,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """What ``apgd`` returns without and with ``drop_fallen``, from one run: a search takes the same way in both until its
    sample falls.

    Args:
        model, x, y, threat, steps, restarts, objective, seed: as in ``apgd``.

    Returns:
        For every sample the point with the largest objective; and a misclassified point of the threat where one was met,
        else the same.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x, y, threat = torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("l2", 0.2)
    >>> best, fooling = apgd_to_the_end(model, x, y, threat, steps=10)
    >>> torch.equal(fooling, apgd(model, x, y, threat, steps=10)), model(best).argmax(1).item()
    (True, 1)
    """
    return _attack(model, x, y, threat, steps, restarts, objective, False, seed)


def _attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    restarts: int,
    objective: Objective,
    drop_fallen: bool,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Points with the largest objective (with ``drop_fallen`` where the sample stands); points that fool, else the same."""
    check_steps(steps, restarts)
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        generator = torch.Generator().manual_seed(seed)
        best, best_value = x.detach().clone(), objective(logits, y).detach().to(x.dtype, copy=True)
        fooling, fallen = best.clone(), fooled(logits, y)
        for _ in range(restarts):
            start = threat.random_start(x, generator)
            rows = torch.nonzero(~fallen if drop_fallen else torch.ones_like(fallen)).squeeze(1)
            if len(rows) == 0:
                break
            found = _run(
                model, x[rows], y[rows], start[rows], threat, steps, lambda _: objective, drop_fallen=drop_fallen
            )
            take = found.value > best_value[rows]
            best[rows[take]], best_value[rows[take]] = found.best[take], found.value[take]
            new = found.wrong & ~fallen[rows]
            fooling[rows[new]], fallen[rows[new]] = found.fooling[new], True
        standing = ~fallen
        fooling[standing] = best[standing]
        return best, fooling


def targeted_apgd(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    objective: TargetedObjective = targeted_dlr,
    batch_size: int = 256,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """AutoPGD towards each of the likeliest wrong classes in turn.

    Args:
        model, x, y, threat, steps, seed: as in ``apgd``.
        restarts: random starts for each target; a sample is attacked until it is misclassified, as whatever class.
        targets: classes aimed at, those with the largest logits on x (9 in the paper's ensemble).
        objective: ``targeted_dlr``, or ``targeted_margin`` for fewer than four classes.
        batch_size: searches at once where fewer samples than that are left: then several targets are tried together.

    Returns:
        For every sample a misclassified point of the threat if one was found, else the one with the largest objective
        over all targets.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(4, 4, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(4))
    >>> x_adv = targeted_apgd(model, torch.tensor([[0.6, 0.1, 0.4, 0.1]]), torch.tensor([0]), Threat("linf", 0.2), steps=10)
    >>> model(x_adv).argmax(1).item()
    2
    """
    check_steps(steps, restarts)
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        ranked, generator = likeliest(logits, y, targets), torch.Generator().manual_seed(seed)
        best, fallen = x.detach().clone(), fooled(logits, y)
        score = torch.full_like(x.flatten(1)[:, 0], -torch.inf)

        def attack(rows: Tensor, ranks: range) -> tuple[Tensor, Tensor]:
            start = torch.cat([threat.random_start(x[rows], generator) for _ in ranks])
            pairs, sample = rows.repeat(len(ranks)), torch.arange(len(rows), device=x.device).repeat(len(ranks))
            target = ranked[rows][:, list(ranks)].T.flatten()

            def towards(index: Tensor) -> Objective:
                return lambda logits, labels: objective(logits, labels, target[index])

            found = _run(model, x[pairs], y[pairs], start, threat, steps, towards, sample=sample)
            points = torch.where(found.wrong.reshape(-1, *(1,) * (x.ndim - 1)), found.fooling, found.best)
            return points, found.value.masked_fill(found.wrong, torch.inf)

        for _ in range(restarts):
            attack_pairs(attack, ranked.shape[1], batch_size, best, score, fallen)
        return best


class _Found(NamedTuple):
    """What a run came to: the points with the largest objective, that objective, which rows were misclassified at some
    point of the run, and the first such points. Of a row that left the batch the first two are those of its start; of one
    that was never misclassified, the last."""

    best: Tensor
    value: Tensor
    wrong: Tensor
    fooling: Tensor


def _run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    objective_of: Callable[[Tensor], Objective],
    *,
    drop_fallen: bool = True,
    sample: Tensor | None = None,
) -> _Found:
    """One restart, in l1 after runs in wider balls.

    ``objective_of`` gives the objective of the rows it is told; rows with the same ``sample`` leave together.
    """
    if sample is None:
        sample = torch.arange(len(x), device=x.device)
    left = steps
    for factor, share in _WIDER if threat.norm == "l1" else ():
        wider, spent = Threat(threat.norm, factor * threat.eps, threat.box), int(share * steps)
        if spent > 0:
            start = wider.project(start, x)
            start = _climb(model, x, y, start, wider, spent, objective_of, False, sample).best
            left -= spent
    return _climb(model, x, y, threat.project(start, x), threat, left, objective_of, drop_fallen, sample)


def _climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    objective_of: Callable[[Tensor], Objective],
    drop_fallen: bool,
    sample: Tensor,
) -> _Found:
    """One run in one ball."""
    everyone = torch.arange(len(x), device=x.device)
    values, gradient, logits = value_and_gradient(model, start, y, objective_of(everyone))
    wrong = fooled(logits, y)
    found = _Found(start.clone(), values.clone(), wrong.clone(), start.clone())
    state = begin(x, y, start, values, gradient, sample, threat)
    beaten = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # by sample
    beaten[sample[wrong]] = True
    state.fallen = beaten[sample]
    marks, window_start = set((sparse_checkpoints if threat.norm == "l1" else checkpoints)(steps)), 0
    for iteration in range(1, steps + 1):
        if drop_fallen and float(state.fallen.sum()) >= max(1.0, _REPACK * len(state.index)):
            state.keep(~state.fallen)
        if len(state.index) == 0:
            break
        move(state, threat, first=iteration == 1)
        objective = objective_of(state.index)
        if iteration < steps:
            values, state.gradient, logits = value_and_gradient(model, state.adv, state.y, objective)
        else:
            values, logits = value(model, state.adv, state.y, objective)
        wrong = fooled(logits, state.y)
        new = torch.nonzero(wrong & ~state.fallen).squeeze(1)
        if len(new) > 0:
            rows = state.index[new]
            found.fooling[rows], found.wrong[rows] = state.adv[new], True
            beaten[state.sample[new]] = True
            state.fallen = beaten[state.sample]
        state.rises = state.rises + (values > state.value)
        state.value = values
        remember_best(state)
        if iteration in marks and iteration < steps:
            if threat.norm == "l1":
                reconsider_sparsity(state, threat)
            else:
                reconsider_step(state, iteration - window_start)
            window_start = iteration
    found.best[state.index], found.value[state.index] = state.best, state.best_value
    return found
