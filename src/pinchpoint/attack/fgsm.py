"""Fast gradient sign method (Goodfellow et al. 2015): one step of length eps, in the geometry of the threat's norm."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value_and_gradient
from pinchpoint.attack.objectives import Objective, cross_entropy
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.threat import Threat


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    objective: Objective = cross_entropy,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """The point of the threat that a linear model with this gradient would fear most (``Threat.furthest``).

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box.
        objective: whose gradient is followed.
        seed: of whatever the model draws; the global RNG is left as it was.

    Returns:
        For every sample the point one step away; a sample already misclassified stays where it is.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> import torch
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = fgsm(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2))
    >>> model(x_adv).argmax(1).item()
    1
    """
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device):
        x_adv, standing = x.detach().clone(), ~fooled(checked_logits(model, x, y), y)
        if bool(standing.any()):
            _, gradient, _ = value_and_gradient(model, x[standing], y[standing], objective)
            x_adv[standing] = threat.furthest(x[standing], gradient)
        return x_adv
