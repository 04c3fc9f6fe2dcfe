"""DeepFool (Moosavi-Dezfooli, Fawzi & Frossard 2016): step after step to the nearest boundary of the linearised model.

As in the authors' public implementation (LTS4/DeepFool) every step is overshot, and the model is linearised where that
leads. What is ours: the box (an entry at its edge does not count towards a boundary's nearness, and steps keep inside),
the l1 norm, and batches, which a sample leaves as soon as it is misclassified.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.fab_projection import shortest_move
from pinchpoint.attack.gradient import attacking, checked_logits, fooled, input_gradient, objective_of
from pinchpoint.attack.objectives import targeted_margin
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.targets import likeliest
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import ThreatError
from pinchpoint.utils.model_output import answer

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
_ROUNDING = 8.0  # units in the last place of the largest logit: smaller gaps are taken for this one


def deepfool(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """The shortest way out of the label's region that a sequence of linear models shows, whatever its length.

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box; the norm in which the nearest boundary is sought.
        steps: at most, each with one pass through the model and one back for each candidate.
        overshoot: how much further than to the boundary each step goes, as a share of it.
        candidates: wrong classes considered, those with the largest logits on x.
        seed: of whatever the model draws; the attack itself draws nothing.

    Returns:
        For every sample the first misclassified point on its way, else the last point; projected onto the threat.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = deepfool(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2))
    >>> [round(value, 3) for value in x_adv[0].tolist()]
    [0.498, 0.502]
    """
    check_steps(steps, 1)
    if not 0.0 <= overshoot < torch.inf:
        raise ThreatError("overshoot must be zero or more, and finite", overshoot, "use for example 0.02")
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        found = leave_region(model, x.detach(), y, logits, threat, steps, overshoot, candidates)
        return threat.project(found, x)


def leave_region(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    logits: Float[Tensor, "batch classes"],
    threat: Threat,
    steps: int,
    overshoot: float,
    candidates: int,
) -> Float[Tensor, "batch *shape"]:
    """Where ``deepfool`` gets before it is projected, for a model in eval mode and its logits on x."""
    targets = likeliest(logits, y, candidates)
    reached, rows = x.clone(), torch.nonzero(~fooled(logits, y)).squeeze(1)
    for _ in range(steps):
        if len(rows) == 0:
            break
        at = reached[rows]
        gap, normal = _nearest_boundary(model, at, y[rows], targets[rows], threat)
        room = threat.room(at, normal)
        move = shortest_move(normal.flatten(1), gap, room.flatten(1), threat.norm).reshape(at.shape)
        reached[rows] = threat.clip(at + (1.0 + overshoot) * move)
        with torch.no_grad():  # a pass of its own: only who stays is worth the passes back
            rows = rows[~fooled(answer(model, reached[rows]), y[rows])]
    return reached


def _nearest_boundary(model: nn.Module, x: Tensor, y: Tensor, targets: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """How much the nearest of the linearised boundaries lacks, and its normal: the gradient of target minus label."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = answer(model, x)
        margins = [objective_of(partial(targeted_margin, target=one), logits, y).to(x.dtype) for one in targets.T]
    hidden = _ROUNDING * torch.finfo(x.dtype).eps * logits.detach().abs().amax(1).to(x.dtype)
    gap, normal, nearest = torch.zeros_like(hidden), torch.zeros_like(x), torch.full_like(hidden, torch.inf)
    for place, values in enumerate(margins):
        gradient = input_gradient(model, x, values, again=place < len(margins) - 1)
        lacking = torch.maximum(-values.detach(), hidden)
        free = torch.where(threat.room(x.detach(), gradient) > 0, gradient, 0.0)
        distance = lacking / torch.linalg.vector_norm(free.flatten(1), _DUAL[threat.norm], 1)
        nearer = distance < nearest
        gap, nearest = torch.where(nearer, lacking, gap), torch.where(nearer, distance, nearest)
        normal = torch.where(nearer.reshape(-1, *(1,) * (x.ndim - 1)), gradient, normal)
    return gap, normal
