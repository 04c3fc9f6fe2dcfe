"""FAB, the fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted adversarial examples"), targeted.

It looks for the nearest misclassified point, not for one inside a given ball: each step goes to the hyperplane where the
model, linear there, would change its answer to the target, drawn back towards the input. Overshoot, bias and backward step
are the paper's and those of the authors' public implementation (fra31/auto-attack); its final search is the paper's. What
is ours: where only a budget matters, a sample found inside it leaves, and several targets share a batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.fab_projection import shortest_move
from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value, value_and_gradient
from pinchpoint.attack.objectives import margin, targeted_margin
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.targets import attack_pairs, likeliest
from pinchpoint.attack.threat import Threat
from pinchpoint.utils.model_output import answer

_OVERSHOOT = 1.05  # eta
_BACK = 0.9  # beta: how much of a misclassified point's perturbation the search goes on from
_BIAS = 0.1  # alpha_max: the largest share of the step that starts at the input
_FINAL = 3  # points tried on the way back from the best point to the input
_REPACK = 0.1  # fallen share of the batch at which the survivors are gathered
_BEYOND = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the perturbation, added where the answer hangs on rounding
_WITHIN = 1.0 - 1e-6  # of eps: what ``Threat.project`` leaves as it is


def fab(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    targets: int = 9,
    batch_size: int = 256,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """FAB towards each of the likeliest wrong classes, until a point inside the threat is found.

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: ball and box; the norm in which the nearest point is sought.
        steps: for each target.
        targets: classes aimed at, those with the largest logits on x (9 in the paper's ensemble).
        batch_size: searches at once where fewer samples than that are left: then several targets are tried together.
        seed: of whatever the model draws; the attack itself draws nothing.

    Returns:
        For every sample a misclassified point of the threat if one was found; else the nearest misclassified point seen,
        projected onto the threat, or x where none was seen.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = fab(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("l2", 0.2), steps=10)
    >>> model(x_adv).argmax(1).item()
    1
    """
    x, y = check_samples(x, y, threat)
    found = _search(model, x, y, threat, steps, targets, batch_size, seed, stop_inside=True)
    return threat.project(found, x)


def nearest_misclassified(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    targets: int = 9,
    batch_size: int = 256,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """The nearest misclassified point of the box that FAB sees, whatever the threat's eps; x where it sees none.

    The model errs on every point returned when it is given all of them in one batch, as they are.

    Args:
        model, x, y, threat, steps, targets, batch_size, seed: as in ``fab``.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x, threat = torch.tensor([[0.9, 0.1]]), Threat("linf", 0.0)
    >>> round(float(threat.length(nearest_misclassified(model, x, torch.tensor([0]), threat) - x)), 3)
    0.4
    """
    x, y = check_samples(x, y, threat)
    found = _search(model, x, y, threat, steps, targets, batch_size, seed, stop_inside=False)
    return _surely(model, found, x, y, threat, seed)


def _surely(model: nn.Module, found: Tensor, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    """Points so close to the boundary that rounding decides are moved out until the model errs on all of x at once.

    A search sees a sample among others than the caller does, and a model's last bits depend on the batch.
    """
    moved = (found != x).flatten(1).any(1)
    with attacking(model, seed, x.device), torch.no_grad():
        for beyond in _BEYOND:
            right = moved & ~fooled(answer(model, found), y)
            if not bool(right.any()):
                return found
            further = threat.clip(x + (1.0 + beyond) * (found - x))
            found = torch.where(_wide(right, x), further, found)
        right = moved & ~fooled(answer(model, found), y)
    return torch.where(_wide(right, x), x, found)


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    targets: int,
    batch_size: int,
    seed: int,
    *,
    stop_inside: bool,
) -> Tensor:
    check_steps(steps, 1)
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        ranked = likeliest(logits, y, targets)
        best, done = x.detach().clone(), fooled(logits, y)
        score = torch.full_like(x.flatten(1)[:, 0], -torch.inf)
        enough = threat.eps * _WITHIN if stop_inside else -1.0

        def attack(rows: Tensor, ranks: range) -> tuple[Tensor, Tensor]:
            pairs, sample = rows.repeat(len(ranks)), torch.arange(len(rows), device=x.device).repeat(len(ranks))
            target = ranked[rows][:, list(ranks)].T.flatten()
            points, distance = _approach(model, x[pairs], y[pairs], target, sample, threat, steps, enough)
            return points, torch.where(distance <= enough, torch.inf, -distance)

        attack_pairs(attack, ranked.shape[1], batch_size, best, score, done)
        return best


def _approach(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, sample: Tensor, threat: Threat, steps: int, enough: float
) -> tuple[Tensor, Tensor]:
    """One run for each pair. The nearest misclassified points and how far they are; infinitely far where there is none.

    Pairs of a sample leave together when one of them has come as near as is enough.
    """
    best, distance = x.clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf)
    settled = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # by sample
    rows, at = torch.arange(len(x), device=x.device), x
    for _ in range(steps):
        gone = settled[sample[rows]]
        if float(gone.sum()) >= max(1.0, _REPACK * len(rows)):
            rows, at = rows[~gone], at[~gone]
        if len(rows) == 0:
            break
        origin = x[rows]
        moved = threat.clip(_next_point(model, at, origin, y[rows], target[rows], threat))
        with torch.no_grad():
            wrong = fooled(answer(model, moved), y[rows])
        length = threat.length(moved - origin)
        nearer = wrong & (length < distance[rows])
        best[rows[nearer]], distance[rows[nearer]] = moved[nearer], length[nearer]
        settled[sample[rows[nearer & (length <= enough)]]] = True
        at = torch.where(_wide(wrong, x), origin + _BACK * (moved - origin), moved)
    rows = torch.nonzero(torch.isfinite(distance) & ~settled[sample]).squeeze(1)
    if len(rows) > 0:
        best[rows] = _walk_back(model, x[rows], best[rows], y[rows])
        distance[rows] = threat.length(best[rows] - x[rows])
    return best, distance


def _next_point(model: nn.Module, at: Tensor, origin: Tensor, y: Tensor, target: Tensor, threat: Threat) -> Tensor:
    """Both projections onto the hyperplane where the linearised target overtakes the label, overshot and combined."""
    gap, normal, _ = value_and_gradient(model, at, y, lambda logits, labels: targeted_margin(logits, labels, target))
    from_origin = gap + (normal * (origin - at)).flatten(1).sum(1)
    both, gaps = torch.cat([at, origin]), -torch.cat([gap, from_origin])
    normals = torch.cat([normal, normal])
    room = threat.room(both, normals * _wide(gaps, normals))
    moves = shortest_move(normals.flatten(1), gaps, room.flatten(1), threat.norm).reshape(both.shape)
    near, far = (both + _OVERSHOOT * moves).chunk(2)
    length_near, length_far = threat.length(moves).clamp_min(1e-8).chunk(2)
    bias = _wide((length_near / (length_near + length_far)).clamp_max(_BIAS), at)
    return (1.0 - bias) * near + bias * far


def _walk_back(model: nn.Module, origin: Tensor, found: Tensor, y: Tensor) -> Tensor:
    """Regula falsi on the margin between input and misclassified point; the nearest misclassified one that it meets."""
    low, (below, _) = torch.zeros_like(origin.flatten(1)[:, 0]), value(model, origin, y, margin)
    high, (above, _) = torch.ones_like(low), value(model, found, y, margin)
    for _ in range(_FINAL):
        root = high - above * (high - low) / (above - below).clamp_min(torch.finfo(low.dtype).tiny)
        share = root + 1e-3 * (high - root)  # just beyond, where the answer has changed
        height, logits = value(model, origin + _wide(share, origin) * (found - origin), y, margin)
        wrong = fooled(logits, y)
        high, above = torch.where(wrong, share, high), torch.where(wrong, height, above)
        low, below = torch.where(wrong, low, share), torch.where(wrong, below, height)
    return torch.where(_wide(high < 1.0, origin), origin + _wide(high, origin) * (found - origin), found)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """One value a sample, shaped to broadcast."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
