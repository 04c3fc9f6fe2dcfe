"""The inner maximisation of adversarial training: PGD with nothing but gradient steps, so it costs what they cost."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode, value_and_gradient
from pinchpoint.attack.objectives import Objective, cross_entropy
from pinchpoint.attack.threat import Threat


def inner_pgd(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float | None = None,
    objective: Objective = cross_entropy,
) -> Float[Tensor, "batch *shape"]:
    """The last of ``steps`` points of steepest ascent from a random start in the ball (Madry et al. 2018).

    Each step is one forward and one backward pass to the input, and there are no others: inputs are not checked, samples
    already misclassified go on, the best point on the way is not looked for. To judge a model use ``pgd`` or ``apgd``.

    Args:
        model: returns logits. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box.
        steps: one is the single step of fast adversarial training (Wong, Rice & Kolter 2020).
        step_size: in input units; 2.5 eps / steps where None, and 1.25 eps with one step, as in the papers.
        objective: what is maximised.

    Returns:
        Points of the threat. Random numbers come from the global RNG, which a training seeds and keeps.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> inner_pgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2)).round(decimals=4).tolist()
    [[0.4000000059604645, 0.6000000238418579]]
    """
    size = step_size if step_size is not None else (2.5 / steps if steps > 1 else 1.25) * threat.eps
    x = x.detach()
    with eval_mode(model):
        adv = threat.project(x + _start(x, threat), x)
        for _ in range(steps):
            _, gradient, _ = value_and_gradient(model, adv, y, objective)
            adv = threat.project(adv + size * threat.direction(gradient, at=adv), x)
    return adv


def _start(x: Tensor, threat: Threat) -> Tensor:
    """A perturbation inside the ball: uniform in the cube for linf, else a random direction of uniform length."""
    if threat.norm == "linf":
        return (2.0 * torch.rand_like(x) - 1.0) * threat.eps
    draw = torch.randn_like(x)
    factor = threat.eps * torch.rand(len(x), device=x.device, dtype=x.dtype) / threat.length(draw).clamp_min(1e-12)
    return draw * factor.reshape(-1, *(1,) * (x.ndim - 1))
