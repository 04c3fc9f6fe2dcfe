"""Projected gradient descent (Madry et al. 2018), with momentum (Dong et al. 2018) as an option."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value, value_and_gradient
from pinchpoint.attack.objectives import Objective, cross_entropy
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import ThreatError


def pgd(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 40,
    step_size: float | None = None,
    momentum: float = 0.0,
    restarts: int = 1,
    random_start: bool = True,
    objective: Objective = cross_entropy,
    drop_fallen: bool = True,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """Steepest ascent on the objective, projected after each step.

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box.
        steps: gradient steps a restart.
        step_size: in input units; 4 * eps / steps where None, which in our trials (digits, MNIST; l_inf, l_2, l_1) left no
            more standing than the 2.5 of Madry et al. 2018, and mostly less.
        momentum: share of the accumulated direction that is kept (gradients are added at l1 length 1), 0 for none.
        restarts: random starts; each attacks only what the ones before left standing.
        random_start: False starts at x itself.
        objective: what is maximised.
        drop_fallen: a sample leaves the batch as soon as it is misclassified. False goes on raising the objective.
        seed: of the random starts and of whatever the model draws; the global RNG is left as it was.

    Returns:
        For every sample a misclassified point of the threat if one was found, else the one with the largest objective;
        with ``drop_fallen=False`` always the one with the largest objective.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = pgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2), steps=5)
    >>> model(x_adv).argmax(1).item()
    1
    """
    check_steps(steps, restarts)
    x, y = check_samples(x, y, threat)
    size = 4.0 * threat.eps / steps if step_size is None else step_size
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        generator = torch.Generator().manual_seed(seed)
        best, best_value = x.detach().clone(), objective(logits, y).detach().to(x.dtype, copy=True)
        fallen = fooled(logits, y)
        for _ in range(restarts):
            start = threat.random_start(x, generator) if random_start else x.detach().clone()
            index = torch.nonzero(~fallen).squeeze(1) if drop_fallen else torch.arange(len(x), device=x.device)
            adv, velocity = start[index], torch.zeros_like(start[index])
            for step in range(steps + 1):
                if len(index) == 0:
                    break
                if step < steps:
                    values, gradient, logits = value_and_gradient(model, adv, y[index], objective)
                else:
                    values, logits = value(model, adv, y[index], objective)
                wrong = fooled(logits, y[index])
                better = values > best_value[index]
                take = better | wrong if drop_fallen else better
                best[index[take]], best_value[index[take]] = adv[take], values[take]
                fallen[index[wrong]] = True
                if step == steps:
                    break
                if drop_fallen and bool(wrong.any()):
                    index, adv, velocity, gradient = index[~wrong], adv[~wrong], velocity[~wrong], gradient[~wrong]
                velocity = momentum * velocity + _l1_unit(gradient) if momentum else gradient
                adv = threat.project(adv + size * threat.direction(velocity, at=adv), x[index])
        return best


def _l1_unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient at l1 length 1; zero stays zero."""
    largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    scaled = gradient / largest.reshape(-1, *(1,) * (gradient.ndim - 1))  # sums of huge gradients would overflow
    length = scaled.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / length.reshape(-1, *(1,) * (gradient.ndim - 1))


def check_steps(steps: int, restarts: int) -> None:
    """Refuse an attack that would do nothing."""
    if steps < 1 or restarts < 1:
        raise ThreatError(
            "steps and restarts must be one or more", f"{steps} and {restarts}", "use for example 40 and 1"
        )
