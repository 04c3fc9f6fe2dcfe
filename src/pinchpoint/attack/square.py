"""Square attack (Andriushchenko et al. 2020): random search with queries only, no gradient.

Every query changes the perturbation in a window and keeps the change where the margin falls. Windows, their shrinking and
the patterns are the paper's, with the schedule of the authors' ensemble (fra31/auto-attack: not rescaled to the number of
queries); l1 is Croce & Hein 2021's. What is ours: any input shape; windows and signs are drawn once a query for all
samples, and starts by sample, so nothing depends on the batch; a change that changes nothing costs no query.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value
from pinchpoint.attack.objectives import margin
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.square_windows import Window, covered, image_shape, pattern, place, tiles, window_size
from pinchpoint.attack.threat import Threat, own_draws

_REPACK = 0.1  # fallen share of the batch at which the survivors are gathered
_TINY = 1e-12


def square(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    queries: int = 5000,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """Random search in windows that shrink.

    Args:
        model: returns logits; needs no gradient. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box, of any shape (``windows.image_shape`` says how it is seen as an image).
        y: labels.
        threat: ball and box.
        queries: answers asked of the model for a sample, at most; the first is for the start (5000 in the ensemble).
        seed: of starts, windows and whatever the model draws; the global RNG is left as it was.

    Returns:
        For every sample a misclassified point of the threat if one was found, else the one with the largest margin seen.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = square(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.2), queries=50)
    >>> model(x_adv).argmax(1).item()
    1
    """
    check_steps(queries, 1)
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device), torch.no_grad():
        logits = checked_logits(model, x, y)
        generator = torch.Generator().manual_seed(seed)
        found, index = x.detach().clone(), torch.nonzero(~fooled(logits, y)).squeeze(1)
        origin = x[index].reshape(-1, *image_shape(tuple(x.shape[1:])))
        best, standing = origin.clone(), torch.ones(len(index), dtype=torch.bool, device=x.device)
        worst = torch.full((len(index),), -torch.inf, dtype=x.dtype, device=x.device)  # margin at the best point
        for query in range(queries):
            if float((~standing).sum()) >= max(1.0, _REPACK * len(index)):
                found[index] = best.reshape(-1, *x.shape[1:])
                index, origin, best, worst = index[standing], origin[standing], best[standing], worst[standing]
                standing = standing[standing]
            if len(index) == 0:
                break
            if query == 0:
                proposal = _start(origin, threat, generator)
            else:
                proposal = _propose(best, origin, threat, covered(query - 1), generator)
            rows = torch.nonzero(standing & ((proposal - best).flatten(1).abs_().amax(1) > 0)).squeeze(1)
            if len(rows) == 0:
                continue
            labels, proposal = y[index[rows]], proposal[rows]
            values, logits = value(model, proposal.reshape(-1, *x.shape[1:]), labels, margin)
            wrong = fooled(logits, labels)
            take = (values > worst[rows]) | wrong
            better = rows[take]
            best[better], worst[better] = proposal[take], values[take]
            standing[rows[wrong]] = False
        found[index] = best.reshape(-1, *x.shape[1:])
        return found


def _start(origin: Float[Tensor, "batch channels height width"], threat: Threat, generator: torch.Generator) -> Tensor:
    """linf: vertical stripes of +-eps; l2, l1: the pattern in a grid of tiles, signs at random, scaled to eps."""
    draws = own_draws(origin, generator, uniform=True).to(origin)
    if threat.norm == "linf":
        return threat.clip(origin + threat.eps * draws[:, :, :1].sign())
    delta = torch.zeros_like(origin)
    for tile in tiles(*origin.shape[2:]):
        sign = tile.of(draws)[:, :, :1, :1].sign()
        tile.of(delta).copy_(sign * _pattern(tile, threat, generator).to(origin))
    return _at_eps(origin, delta, threat)


def _propose(
    best: Float[Tensor, "batch channels height width"],
    origin: Float[Tensor, "batch channels height width"],
    threat: Threat,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """The best points with one window changed; the same window, pattern and signs for all."""
    channels, height, width = origin.shape[1:]
    size = window_size(height, width, share, odd=threat.norm != "linf")
    window = place(size, height, width, generator)
    sign = torch.randint(2, (channels, 1, 1), generator=generator).to(origin) * 2.0 - 1.0
    if threat.norm == "linf":
        proposal = best.clone()
        window.of(proposal).copy_(threat.clip(window.of(origin) + threat.eps * sign))
        return proposal
    return _move_budget(best - origin, origin, window, place(size, height, width, generator), sign, threat, generator)


def _move_budget(
    delta: Tensor,
    origin: Tensor,
    window: Window,
    emptied: Window,
    sign: Tensor,
    threat: Threat,
    generator: torch.Generator,
) -> Tensor:
    """l2 and l1: what one window holds, and what is left of eps, goes into another (the paper's Algorithm 3)."""
    order = 2 if threat.norm == "l2" else 1
    here = window.of(delta).abs().pow(order).sum((2, 3), keepdim=True)
    spent = delta.abs().pow(order).sum((1, 2, 3), keepdim=True)
    outside = delta.clone()
    window.of(outside).zero_()
    emptied.of(outside).zero_()
    freed = (delta.abs().pow(order) - outside.abs().pow(order)).sum((2, 3), keepdim=True)
    budget = freed + (threat.eps**order - spent).clamp_min(0.0) / origin.shape[1]
    new = sign * _pattern(window, threat, generator).to(origin)
    new = new + window.of(delta) / here.pow(1.0 / order).clamp_min(_TINY)
    length = new.abs().pow(order).sum((2, 3), keepdim=True).pow(1.0 / order)
    window.of(outside).copy_(new / length.clamp_min(_TINY) * budget.clamp_min(0.0).pow(1.0 / order))
    return _at_eps(origin, outside, threat)


def _pattern(window: Window, threat: Threat, generator: torch.Generator) -> Tensor:
    """The two bumps at length 1, one above or beside the other at random."""
    upright = bool(torch.randint(2, (1,), generator=generator))
    order = 2 if threat.norm == "l2" else 1
    bumps = pattern(window.height, window.width, 4 // order, upright=upright)
    return bumps / bumps.abs().pow(order).sum().pow(1.0 / order)


def _at_eps(origin: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    """origin + delta, delta scaled to length eps, then cut to ball and box."""
    length = threat.length(delta).reshape(-1, 1, 1, 1).clamp_min(_TINY)
    return threat.project(origin + delta * (threat.eps / length), origin)
