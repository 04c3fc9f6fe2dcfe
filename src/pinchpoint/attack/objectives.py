"""What an attack maximises: one value a sample, larger is worse for the model.

Cross-entropy saturates in float32 when logits are large (its gradient becomes exactly zero), so a model is attacked less
well the larger its scale. ``log_odds`` rises with it, never saturates, and is what attacks raise by default. ``dlr`` does
not change when all logits are multiplied by a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pinchpoint.errors import ModelError

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) -> one value a sample."""

TargetedObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, labels, targets) -> one value a sample, larger the nearer it is to being taken for its target."""


def cross_entropy(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """-log softmax(logits)_y.

    >>> round(cross_entropy(torch.zeros(1, 2), torch.tensor([0])).item(), 4)
    0.6931
    """
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """max_{j != y} logit_j - logit_y: positive as soon as the sample is misclassified.

    >>> margin(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).item()
    -2.0
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - own


def dlr(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Difference of logits ratio (Croce & Hein 2020, equation 6): margin / (largest - third largest logit).

    Raises:
        ModelError: for fewer than three classes, where it is not defined.

    >>> dlr(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([0])).item()
    -0.5
    """
    if logits.shape[1] < 3:
        raise ModelError("DLR needs at least three classes", logits.shape[1], "use the margin instead")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def targeted_margin(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"], target: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """logit_target - logit_y: positive as soon as the target lies above the label.

    >>> targeted_margin(torch.tensor([[3.0, 1.0]]), torch.tensor([0]), torch.tensor([1])).item()
    -2.0
    """
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def targeted_dlr(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"], target: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Targeted DLR (Croce & Hein 2020, equation 7): targeted margin / (largest - mean of third and fourth largest logit).

    Raises:
        ModelError: for fewer than four classes, where it is not defined.

    >>> targeted_dlr(torch.tensor([[4.0, 2.0, 1.0, -1.0]]), torch.tensor([0]), torch.tensor([1])).item()
    -0.5
    """
    if logits.shape[1] < 4:
        raise ModelError("targeted DLR needs at least four classes", logits.shape[1], "use the targeted margin instead")
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2.0).clamp_min(1e-12)


def log_odds(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """log((1 - p_y) / p_y) with p = softmax(logits): how much likelier any other class is than the label.

    Cross-entropy is softplus of it, so for each sample both rise together and their gradients differ by a positive factor:
    an attack that follows directions and compares a sample's own values takes the same steps. That factor is what vanishes
    in float32 where the label is some 17 nats ahead; this has no such place.

    >>> two = torch.tensor([[3.0, 1.0]])
    >>> log_odds(two, torch.tensor([0])).item(), log_odds(1000 * two, torch.tensor([0])).item()
    (-2.0, -2000.0)
    """
    own = logits.gather(1, y[:, None])
    return (logits - own).scatter(1, y[:, None], -torch.inf).logsumexp(1)


def scaled_log_odds(temperature: float) -> Objective:
    """``log_odds`` of logits / temperature, with a temperature fixed for one model before the attack starts.

    >>> scaled_log_odds(2.0)(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).item()
    -1.0
    """

    def objective(logits: Tensor, y: Tensor) -> Tensor:
        return log_odds(logits / temperature, y)

    return objective


def scaled_cross_entropy(temperature: float) -> Objective:
    """Cross-entropy of logits / temperature, with a temperature fixed for one model before the attack starts; for what
    weighs samples against each other, which ``log_odds`` does otherwise.

    With the temperature that ``logit_scale`` measures, multiplying all logits by a constant changes little.
    """

    def objective(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits / temperature, y)

    return objective


_ORDINARY = (12.0, 24.0)  # spreads of logits that are attacked as they are
_BEST = 10.0  # what others are brought to


def logit_scale(
    logits: Float[Tensor, "batch classes"], *, ordinary: tuple[float, float] = _ORDINARY, best: float = _BEST
) -> float:
    """The temperature for ``scaled_log_odds``: 1 where the median spread of the logits (largest minus mean) is an ordinary
    one; elsewhere what brings it to ``best``.

    Far below, cross-entropy lowers the mean margin to all classes instead of the nearest one; far above, that of the nearest
    alone, and float32 loses the rest. In between nothing is rescaled, and AutoPGD takes the steps it takes on plain
    cross-entropy. In our trials (MNIST, digits; plain and adversarially trained; l_inf and l_2) AutoPGD left fewest standing
    at spreads of 10 to 24, some more at 8 and at 64, and up to 15 % more on the margin alone.

    Args:
        logits: of the model's inputs.
        ordinary: the smallest and the largest spread that is left as it is.
        best: the spread to which others are brought.

    >>> logit_scale(torch.tensor([[27.0, 0.0, 0.0]])), logit_scale(torch.tensor([[7.5, 0.0, 0.0]]))
    (1.0, 0.5)
    """
    known = logits.detach().double()
    median = float((known.amax(1) - known.mean(1)).median())
    if median <= 0 or ordinary[0] <= median <= ordinary[1]:
        return 1.0
    return median / best
