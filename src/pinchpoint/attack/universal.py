"""One perturbation for all inputs, fitted by stochastic gradient ascent (Shafahi et al. 2020, Algorithm 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, check_inputs, fooled, value_and_gradient
from pinchpoint.attack.objectives import Objective, cross_entropy
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.threat import Threat


def universal(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 200,
    batch_size: int = 256,
    step_size: float | None = None,
    restarts: int = 1,
    objective: Objective = cross_entropy,
    seed: int = 0,
) -> Float[Tensor, "*shape"]:
    """Fit one perturbation on training data; judge it on other data with ``apply_universal``.

    Each step averages the gradient over a random batch, moves by its sign (linf) or direction (l2) and projects onto the
    ball. The step size falls linearly to a tenth. Of all restarts the perturbation that fools most of x is returned.

    Args:
        model, x, y, threat: as in ``pgd``; eps is the ball the perturbation itself must lie in.
        steps: gradient steps a restart.
        batch_size: samples a step.
        step_size: first step, in input units; eps / 4 where None.
        restarts: random starting perturbations.
        objective: what is maximised on average.
        seed: of starts, batches and whatever the model draws; the global RNG is left as it was.

    Returns:
        The perturbation, shaped like one input.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x = torch.tensor([[0.6, 0.4], [0.7, 0.5]])
    >>> universal(model, x, torch.tensor([0, 0]), Threat("linf", 0.2), steps=20).sign().tolist()
    [-1.0, 1.0]
    """
    check_steps(steps, restarts)
    first = threat.eps / 4.0 if step_size is None else step_size
    with attacking(model, seed, x.device):
        check_inputs(model, x, y, threat)
        generator = torch.Generator().manual_seed(seed)
        ball = Threat(threat.norm, threat.eps, box=None)
        origin = torch.zeros_like(x[:1])
        best, best_rate = origin, -1.0
        for _ in range(restarts):
            delta = ball.random_start(origin, generator)
            for step in range(steps):
                rows = torch.randperm(len(x), generator=generator)[:batch_size].to(x.device)
                _, gradient, _ = value_and_gradient(model, threat.clip(x[rows] + delta), y[rows], objective)
                size = first * (1.0 - 0.9 * step / steps)
                delta = ball.project(delta + size * ball.direction(gradient.mean(0, keepdim=True)), origin)
            with torch.no_grad():
                rate = float(fooled(model(apply_universal(x, delta, threat)), y).double().mean())
            if rate > best_rate:
                best, best_rate = delta, rate
        return best[0]


def apply_universal(x: Float[Tensor, "batch *shape"], delta: Tensor, threat: Threat) -> Float[Tensor, "batch *shape"]:
    """x + delta inside ball and box."""
    return threat.project(x + delta, x)
