"""AutoPGD (Croce & Hein 2020, Algorithm 1): PGD with momentum that finds its own step size.

Checkpoints, the two halving conditions, momentum and the restart from the best point are those of the paper. Where its
text and the authors' public implementation (fra31/auto-attack) differ, the implementation is followed: checkpoints are
rounded down and counted in steps done, a window in which exactly the share rho of the steps rose counts as oscillating,
condition 2 waits for the second checkpoint,
and after a restart the next step is compared with the last point evaluated. What is ours: a sample that has fallen
leaves the batch, and the last step takes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, check_inputs, fooled, value, value_and_gradient
from pinchpoint.attack.objectives import Objective, cross_entropy
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.threat import Threat

_MOMENTUM = 0.75  # alpha in Algorithm 1
_RHO = 0.75  # share of steps that must have raised the objective for the step size to stay
_REPACK = 0.1  # fallen share of the batch at which the survivors are gathered


def checkpoints(steps: int) -> list[int]:
    """Numbers of steps after which the step size is reconsidered.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, shortest, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, at = [], 0
    while at + period <= steps:
        at += period
        found.append(at)
        period = max(period - shrink, shortest)
    return found


@dataclass
class _State:
    """One row a sample; ``keep`` gathers the rows that stay."""

    index: Tensor
    x: Tensor
    y: Tensor
    adv: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    checked_value: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    fallen: Tensor

    def keep(self, rows: Bool[Tensor, "batch"]) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


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
    check_steps(steps, restarts)
    with attacking(model, seed, x.device):
        logits = check_inputs(model, x, y, threat)
        generator = torch.Generator().manual_seed(seed)
        best, best_value = x.detach().clone(), objective(logits, y).detach().clone()
        fallen = fooled(logits, y)
        for _ in range(restarts):
            start = threat.random_start(x, generator)
            rows = ~fallen if drop_fallen else torch.ones_like(fallen)
            if not bool(rows.any()):
                break
            index = torch.nonzero(rows).squeeze(1)
            found, values, wrong = _run(model, x[rows], y[rows], start[rows], threat, steps, objective, drop_fallen)
            take = values > best_value[index]
            if drop_fallen:
                take |= wrong
            best[index[take]], best_value[index[take]] = found[take], values[take]
            fallen[index[wrong]] = True
        return best


def _run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: Threat,
    steps: int,
    objective: Objective,
    drop_fallen: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One restart. Returns the points chosen, their objective, and which of them are misclassified."""
    values, gradient, logits = value_and_gradient(model, start, y, objective)
    wrong = fooled(logits, y)
    found, found_value, found_wrong = start.clone(), values.clone(), wrong.clone()
    state = _State(
        index=torch.arange(len(x), device=x.device),
        x=x,
        y=y,
        adv=start,
        previous=start,
        gradient=gradient,
        value=values,
        best=start.clone(),
        best_gradient=gradient.clone(),
        best_value=values.clone(),
        checked_value=values.clone(),
        step=torch.full((len(x), *(1,) * (x.ndim - 1)), 2.0 * threat.eps, dtype=x.dtype, device=x.device),
        rises=torch.zeros(len(x), dtype=torch.long, device=x.device),
        halved=torch.ones(len(x), dtype=torch.bool, device=x.device),
        fallen=wrong,
    )
    marks, window_start = set(checkpoints(steps)), 0
    for iteration in range(1, steps + 1):
        if drop_fallen and float(state.fallen.sum()) >= max(1.0, _REPACK * len(state.index)):
            state.keep(~state.fallen)
        if len(state.index) == 0:
            break
        _move(state, threat, momentum=1.0 if iteration == 1 else _MOMENTUM)
        if iteration < steps:
            values, state.gradient, logits = value_and_gradient(model, state.adv, state.y, objective)
        else:
            values, logits = value(model, state.adv, state.y, objective)
        wrong = fooled(logits, state.y)
        new = wrong & ~state.fallen
        found[state.index[new]], found_value[state.index[new]] = state.adv[new], values[new]
        found_wrong[state.index[new]] = True
        state.fallen = state.fallen | wrong
        state.rises = state.rises + (values > state.value)
        state.value = values
        _remember_best(state)
        if iteration in marks and iteration < steps:
            _reconsider_step(state, iteration - window_start)
            window_start = iteration
    # samples still in the batch: the point with the largest objective, unless they fell and only that counts
    last = ~state.fallen if drop_fallen else torch.ones_like(state.fallen)
    rows = state.index[last]
    found[rows], found_value[rows] = state.best[last], state.best_value[last]
    if not drop_fallen:
        with torch.no_grad():
            found_wrong = fooled(model(found), y)
    return found, found_value, found_wrong


def _move(state: _State, threat: Threat, momentum: float) -> None:
    step = threat.project(state.adv + state.step * threat.direction(state.gradient), state.x)
    moved = state.adv + momentum * (step - state.adv) + (1.0 - momentum) * (state.adv - state.previous)
    state.previous, state.adv = state.adv, threat.project(moved, state.x)


def _remember_best(state: _State) -> None:
    better = state.value > state.best_value
    wide = better.reshape(state.step.shape)
    state.best = torch.where(wide, state.adv, state.best)
    state.best_gradient = torch.where(wide, state.gradient, state.best_gradient)
    state.best_value = torch.where(better, state.value, state.best_value)


def _reconsider_step(state: _State, window: int) -> None:
    """Halve the step and go back to the best point where the window rose too seldom or brought nothing new."""
    oscillating = state.rises <= _RHO * window
    stuck = ~state.halved & (state.checked_value >= state.best_value)
    state.halved = oscillating | stuck
    state.checked_value = state.best_value
    state.rises = torch.zeros_like(state.rises)
    wide = state.halved.reshape(state.step.shape)
    state.step = torch.where(wide, state.step / 2.0, state.step)
    state.adv = torch.where(wide, state.best, state.adv)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)
