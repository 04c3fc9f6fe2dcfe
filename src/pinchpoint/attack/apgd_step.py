"""One step of AutoPGD: where it goes, what it remembers, how its size adapts (Croce & Hein 2020, 2021; see ``apgd``)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool
from torch import Tensor

from pinchpoint.attack.threat import Threat

_MOMENTUM = 0.75  # alpha in Algorithm 1
_RHO = 0.75  # share of steps that must have raised the objective for the step size to stay
_SPARSER = 1.5  # l1: how much sparser than the best point a step is; also what divides the step size
_LARGEST_OVER_SMALLEST = 10.0  # l1: step sizes


@dataclass
class State:
    """One row a search; ``keep`` gathers the rows that stay. Rows of the same ``sample`` fall together.

    l_inf: ``low`` and ``high`` are the ends of ball and box, entry by entry, so that a projection is one operation.
    """

    index: Tensor
    sample: Tensor
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
    share: Tensor
    moved: Tensor
    fallen: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def keep(self, rows: Bool[Tensor, "batch"]) -> None:
        stay = torch.nonzero(rows).squeeze(1)
        for field in fields(self):
            if (tensor := getattr(self, field.name)) is not None:
                setattr(self, field.name, tensor[stay])

    def inside(self, point: Tensor, threat: Threat) -> Tensor:
        """The point projected onto the threat."""
        if self.low is None or self.high is None:
            return threat.project(point, self.x)
        return torch.clamp(point, self.low, self.high)


def begin(
    x: Tensor, y: Tensor, start: Tensor, value: Tensor, gradient: Tensor, sample: Tensor, threat: Threat
) -> State:
    """The state before the first step."""
    rows, moved = len(x), _entries_moved(start, x)
    first = threat.eps if threat.norm == "l1" else 2.0 * threat.eps
    edges = (-torch.inf, torch.inf) if threat.norm == "linf" else ()
    ends = [threat.project(torch.full_like(x, edge), x) for edge in edges]
    return State(
        index=torch.arange(rows, device=x.device),
        sample=sample,
        x=x,
        y=y,
        adv=start,
        previous=start,
        gradient=gradient,
        value=value,
        best=start.clone(),
        best_gradient=gradient.clone(),
        best_value=value.clone(),
        checked_value=value.clone(),
        step=torch.full((rows, *(1,) * (x.ndim - 1)), first, dtype=x.dtype, device=x.device),
        rises=torch.zeros(rows, dtype=torch.long, device=x.device),
        halved=torch.ones(rows, dtype=torch.bool, device=x.device),
        share=moved / x[0].numel() / _SPARSER,
        moved=moved,
        fallen=torch.zeros(rows, dtype=torch.bool, device=x.device),
        **dict(zip(("low", "high"), ends, strict=False)),
    )


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


def sparse_checkpoints(steps: int) -> list[int]:
    """The same for l1: every 25th part of the steps.

    >>> sparse_checkpoints(100)[:3]
    [4, 8, 12]
    """
    period = max(int(0.04 * steps), 1)
    return list(range(period, steps + 1, period))


def move(state: State, threat: Threat, *, first: bool) -> None:
    """A projected gradient step and momentum, projected again; l1: a sparse step, without momentum."""
    direction = threat.direction(state.gradient, share=state.share)
    step = state.inside(direction.mul_(state.step).add_(state.adv), threat)
    if threat.norm == "l1":
        state.adv = step
        return
    if not first:
        kept = (state.adv - state.previous).mul_(1.0 - _MOMENTUM)
        step = state.inside(step.sub_(state.adv).mul_(_MOMENTUM).add_(state.adv).add_(kept), threat)
    state.previous, state.adv = state.adv, step


def remember_best(state: State) -> None:
    """Keep the point with the largest objective so far, and its gradient."""
    better = state.value > state.best_value
    rows = torch.nonzero(better).squeeze(1)
    state.best[rows], state.best_gradient[rows] = state.adv[rows], state.gradient[rows]
    state.best_value = torch.where(better, state.value, state.best_value)


def reconsider_step(state: State, window: int) -> None:
    """Halve the step and go back to the best point where the window rose too seldom or brought nothing new."""
    oscillating = state.rises <= _RHO * window
    stuck = ~state.halved & (state.checked_value >= state.best_value)
    state.halved = oscillating | stuck
    state.checked_value = state.best_value
    state.rises = torch.zeros_like(state.rises)
    wide = state.halved.reshape(state.step.shape)
    state.step = torch.where(wide, state.step / 2.0, state.step)
    _return_to_best(state, wide)


def reconsider_sparsity(state: State, threat: Threat) -> None:
    """l1: where the best point became sparser, start again from it with the full step; elsewhere shorten the step."""
    moved = _entries_moved(state.best, state.x)
    sparser = (moved < 0.95 * state.moved).reshape(state.step.shape)
    shorter = (state.step / _SPARSER).clamp_min(threat.eps / _LARGEST_OVER_SMALLEST)
    state.step = torch.where(sparser, threat.eps, shorter)
    state.share, state.moved = moved / state.x[0].numel() / _SPARSER, moved
    _return_to_best(state, sparser)


def _entries_moved(adv: Tensor, x: Tensor) -> Tensor:
    return (adv != x).flatten(1).sum(1).to(x.dtype)


def _return_to_best(state: State, wide: Bool[Tensor, "batch *ones"]) -> None:
    state.adv = torch.where(wide, state.best, state.adv)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)
