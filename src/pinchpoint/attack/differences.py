"""Gradients from answers alone: any attack that follows a gradient can follow these, where a model has none or a false one.

The gradient is estimated from central differences along random signs, the same in all entries but for the sign
(Spall 1992; Ilyas et al. 2018), so what the model does in its forward pass is all that counts.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, checked_logits, fooled
from pinchpoint.attack.gradient_doubt import margin_gradient
from pinchpoint.attack.objectives import margin
from pinchpoint.attack.pgd import pgd
from pinchpoint.attack.samples import check_points, check_samples
from pinchpoint.attack.threat import Threat
from pinchpoint.utils.model_output import called

_STEP = 0.5  # of the differences, in budgets spread evenly over the entries: across rounding of that size
_FINER = 0.05  # of those that follow it, where more is known of a smooth model
_MOMENTUM = 0.9  # what one step's estimate misses others have
_FEW = 8  # inputs that are asked for their gradient
_LEAST = 1e-3  # of the box: shorter differences drown in float32's rounding


class Differences(nn.Module):
    """The model, with its gradient in the input estimated from ``2 * directions`` answers each time it is asked for.

    Args:
        model: returns logits; needs no gradient.
        step: how far each entry of the input is moved, both ways. Rounding finer than that is seen across.
        directions: random signs along which it is moved.

    >>> class Detached(nn.Module):
    ...     def forward(self, x):
    ...         return 3.0 * x.detach()
    >>> x = torch.tensor([[0.5]], requires_grad=True)
    >>> round(torch.autograd.grad(Differences(Detached(), 0.01)(x).sum(), x)[0].item(), 4)
    3.0
    """

    def __init__(self, model: nn.Module, step: float, directions: int = 32) -> None:
        super().__init__()
        self.model, self.step, self.directions = model, step, directions

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = _Estimated.apply(x, self)  # type: ignore[no-untyped-call]
        return logits


class _Estimated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: Differences) -> Tensor:
        ctx.save_for_backward(x)
        ctx.owner = owner
        logits: Tensor = _answers(owner.model, x)
        return logits

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (x,), owner = ctx.saved_tensors, ctx.owner
        gradient = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(owner.directions):
                signs = torch.randint(2, x.shape, device=x.device).to(x) * 2.0 - 1.0  # follows the attack's seed
                change = _answers(owner.model, x + owner.step * signs) - _answers(owner.model, x - owner.step * signs)
                slope = (change * above[0]).sum(1) / (2.0 * owner.step)
                gradient += slope.reshape(-1, *(1,) * (x.ndim - 1)) * signs
        return gradient / owner.directions, None


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    answers = called(model, x)
    assert isinstance(answers, Tensor)  # attacks have looked at what the model returns
    alone = len(x) == 1 and answers.ndim == 1  # one sample's logits without a batch, as ``answer`` takes them too
    return (answers[None] if alone else answers).detach()


def difference_step(threat: Threat, x: Float[Tensor, "batch *shape"], share: float = _STEP) -> float:
    """How far ``Differences`` moves each entry of inputs under a threat: a share of the budget, spread over all of them.

    >>> difference_step(Threat("linf", 0.1), torch.zeros(1, 4)), difference_step(Threat("l2", 0.1), torch.zeros(1, 4))
    (0.05, 0.025)
    """
    width = 1.0 if threat.box is None else threat.box[1] - threat.box[0]
    spread = float(threat.length(torch.ones_like(x[:1], dtype=torch.float64)))
    return max(share * threat.eps / spread, _LEAST * width)


def followable(model: nn.Module, x: Float[Tensor, "batch *shape"], threat: Threat, seed: int = 0) -> nn.Module:
    """The model; or ``Differences`` of it where autograd gives none of a few inputs a gradient that could be followed.

    >>> x, threat = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), Threat("linf", 0.1)
    >>> type(followable(nn.Linear(4, 2), x, threat)).__name__
    'Linear'
    >>> type(followable(nn.Sequential(nn.Linear(4, 2), nn.Threshold(9.0, 0.0)), x, threat)).__name__
    'Differences'
    """
    x = check_points(x, threat)
    with attacking(model, seed, x.device):
        gradient = margin_gradient(model, x[:_FEW])
    if gradient is not None and bool((gradient != 0).any()):
        return model
    return Differences(model, difference_step(threat, x))


def pgd_by_differences(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 50,
    directions: int = 32,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """PGD with momentum on the margin, along gradients estimated from wide differences and, for what stands then, narrow
    ones: ``2 * steps * (2 * directions + 1)`` answers a sample, at most.

    Args:
        model, x, y, threat, steps, seed: as in ``pgd``, but the model needs no gradient.
        directions: as in ``Differences``.

    >>> class Detached(nn.Module):
    ...     def forward(self, x):
    ...         return x.detach()
    >>> x_adv = pgd_by_differences(Detached(), torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2))
    >>> x_adv.argmax(1).item()
    1
    """
    x, y = check_samples(x, y, threat)
    found = x
    for share in (_STEP, _FINER):
        with attacking(model, seed, x.device):
            rows = torch.nonzero(~fooled(checked_logits(model, found, y), y)).squeeze(1)
        if len(rows) == 0:
            break
        estimated = Differences(model, difference_step(threat, x, share), directions)
        climbed = pgd(estimated, x[rows], y[rows], threat, steps=steps, momentum=_MOMENTUM, objective=margin, seed=seed)
        found = found.index_copy(0, rows, climbed)
    return found
