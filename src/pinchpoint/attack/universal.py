"""One perturbation for all inputs, fitted by stochastic gradient ascent (Shafahi et al. 2020, Algorithm 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import at_once, attacking, checked_logits, fooled, value_and_gradient
from pinchpoint.attack.objectives import Objective, logit_scale, scaled_cross_entropy
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import DataError
from pinchpoint.utils.model_output import answer

_LAST = 0.1  # of the first step's size
_SHARE = 0.1  # of the entries that an l1 step moves
_SPREAD = 8.0  # of the logits that cross-entropy sees: it weighs samples, and with a larger one leaves most of them out
_BATCH = 1024  # samples at a time where all are looked at


def universal(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 30,
    batch_size: int = 50,
    at_a_time: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    objective: Objective | None = None,
    seed: int = 0,
) -> Float[Tensor, "*shape"]:
    """Fit one perturbation on training data; judge it on other data with ``apply_universal``.

    Each step averages the gradient over a random batch, moves by its sign (linf), direction (l2) or largest entries (l1)
    and projects onto the ball. The step size falls linearly to a tenth. Of all restarts the perturbation that fools most
    of x is returned.

    The defaults are for speed. Fitted on 500 images at l_inf 0.15, a fully connected network for MNIST was right on
    19 % of held-out images after 20 steps of 50 samples and 18 % after 200 of 256; ResNet-20 for CIFAR-10 at l_inf
    8/255 on 30 % after 20 steps, 24 % after 50 and 21 % after 100. In l_inf a first step as long as eps did better than a
    quarter of it, most of all where steps are few. In l1 much depends on the start, so restarts pay.

    Args:
        model, x, y, threat: as in ``pgd``; eps is the ball the perturbation itself must lie in.
        steps: gradient steps a restart.
        batch_size: samples a step.
        at_a_time: samples in one pass, where a step's do not fit into memory together.
        step_size: first step, in input units; eps where None.
        restarts: random starting perturbations.
        objective: what is maximised on average. Where None, cross-entropy of logits divided by their scale on x, so that
            multiplying all logits by a constant changes nothing.
        seed: of starts, batches and whatever the model draws; the global RNG is left as it was.

    Returns:
        The perturbation, shaped like one input.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x = torch.tensor([[0.6, 0.4], [0.7, 0.5]])
    >>> universal(model, x, torch.tensor([0, 0]), Threat("linf", 0.2)).sign().tolist()
    [-1.0, 1.0]
    """
    check_steps(steps, restarts)
    x, y = check_samples(x, y, threat)
    first = threat.eps if step_size is None else step_size
    with attacking(model, seed, x.device):
        scale = logit_scale(clean_logits(model, x, y), ordinary=(_SPREAD, _SPREAD), best=_SPREAD)
        raised = scaled_cross_entropy(scale) if objective is None else objective
        generator = torch.Generator().manual_seed(seed)
        ball = reach(threat)
        origin = torch.zeros_like(x[:1])
        best, best_rate = origin, -1.0
        for _ in range(restarts):
            delta = ball.random_start(origin, generator)
            for step in range(steps):
                rows = torch.randperm(len(x), generator=generator)[:batch_size].to(x.device)
                gradient = torch.cat(
                    [
                        value_and_gradient(model, threat.clip(x[some] + delta), y[some], raised)[1]
                        for some in rows.split(at_a_time or batch_size)
                    ]
                )
                size = first * (1.0 - (1.0 - _LAST) * step / steps)
                direction = ball.direction(gradient.mean(0, keepdim=True), at=delta, share=_SHARE)
                delta = ball.project(delta + size * direction, origin)
            rate = share_fooled(model, x, y, delta, threat) if restarts > 1 else 0.0
            if rate > best_rate:
                best, best_rate = delta, rate
        return best[0]


def apply_universal(x: Float[Tensor, "batch *shape"], delta: Tensor, threat: Threat) -> Float[Tensor, "batch *shape"]:
    """x + delta inside ball and box.

    Raises:
        DataError: for a perturbation of another shape than the inputs.
    """
    if delta.shape[-(x.ndim - 1) :] != x.shape[1:]:
        raise DataError(
            f"a perturbation must have the shape of the inputs it is added to, {tuple(x.shape[1:])}",
            tuple(delta.shape),
            "fit it on inputs of that shape",
        )
    return threat.project(x + delta, x)


def reach(threat: Threat) -> Threat:
    """Where a perturbation may lie: in the ball, and no entry larger than the box is wide, which would be cut anyway."""
    if threat.box is None:
        return threat
    width = threat.box[1] - threat.box[0]
    return Threat(threat.norm, threat.eps, (-width, width))


def clean_logits(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]
) -> Float[Tensor, "batch classes"]:
    """As ``checked_logits``, for data that need not fit into one batch."""
    size = at_once(x, _BATCH)
    parts = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([checked_logits(model, *part) for part in parts])


def share_fooled(model: nn.Module, x: Tensor, y: Tensor, delta: Float[Tensor, "1 *shape"], threat: Threat) -> float:
    """Share of samples that are misclassified under the perturbation."""
    with torch.no_grad():
        size = at_once(x, _BATCH)
        parts = zip(x.split(size), y.split(size), strict=True)
        wrong = [fooled(answer(model, apply_universal(a, delta, threat)), b) for a, b in parts]
    return float(torch.cat(wrong).double().mean())
