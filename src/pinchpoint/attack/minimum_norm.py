"""The nearest misclassified point: AutoPGD's moves in a ball that each sample's own search makes smaller or larger.

A sample that is misclassified goes on in a ball a little smaller than its nearest example so far, one that is not in a
ball a little larger (decoupling of direction and norm: Rony et al. 2019; for all norms: Pintor et al. 2021, whose public
implementation is adversarial-library's ``fmn``). Step lengths are a multiple of the ball's radius, with AutoPGD's
momentum, so one run costs what one attack at one budget costs and says for every budget who falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import attacking, checked_logits, fooled, value, value_and_gradient
from pinchpoint.attack.objectives import Objective, dlr, logit_scale, margin, scaled_log_odds
from pinchpoint.attack.pgd import check_steps
from pinchpoint.attack.samples import check_samples
from pinchpoint.attack.threat import Threat

_MOMENTUM = 0.75
_STEP = 2.0  # first step, in radii; falls to nothing along half a cosine
_CHANGE = 0.1  # first share by which a radius changes; falls likewise
_LEAST = 0.002  # share that it falls to


def minimum_norm(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 30,
    objectives: tuple[Objective, ...] | None = None,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """Search for the nearest misclassified point of the threat.

    Args:
        model: returns logits; differentiable in its input. Attacked in eval mode; its modes are put back.
        x: inputs inside the threat's box.
        y: labels.
        threat: norm, box and the largest distance of interest.
        steps: gradient steps with each objective.
        objectives: raised one after the other, the first from x, the others from random starts in the ball just below
            what was found; cross-entropy on rescaled logits and DLR (the margin for two classes) where None.
        seed: of the random starts and of whatever the model draws; the global RNG is left as it was.

    Returns:
        For every sample the nearest misclassified point found; the input itself where there is none.

    Raises:
        DataError, ModelError, ThreatError: for inputs that make no sense, each saying which.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x_adv = minimum_norm(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat("linf", 0.5))
    >>> round(x_adv[0, 0].item(), 3), round(x_adv[0, 1].item(), 3)
    (0.5, 0.5)
    """
    check_steps(steps, 1)
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device):
        logits = checked_logits(model, x, y)
        if objectives is None:
            second = dlr if logits.shape[1] >= 3 else margin
            objectives = (scaled_log_odds(logit_scale(logits)), second)
        nearest = x.detach().clone()
        index = torch.nonzero(~fooled(logits, y)).squeeze(1)
        if threat.eps == 0 or len(index) == 0:
            return nearest
        search = _Search.around(model, x[index].detach(), y[index], threat)
        generator = torch.Generator().manual_seed(seed)
        for number, objective in enumerate(objectives):
            start = search.x if number == 0 else search.random_start(generator)
            search.descend(objective, start, steps)
        nearest[index] = search.nearest
        return nearest


@dataclass
class _Search:
    """One row a sample: its nearest example so far, at distance ``best`` (infinite where none), and its ball."""

    model: nn.Module
    threat: Threat
    x: Tensor
    y: Tensor
    radius: Tensor
    nearest: Tensor
    best: Tensor

    @classmethod
    def around(cls, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> _Search:
        """Begin with the balls that would reach the boundary if the margin were linear."""
        values, gradient, _ = value_and_gradient(model, x, y, margin)
        slope = (gradient * threat.direction(gradient)).flatten(1).sum(1)
        reach = (-values / slope).nan_to_num(nan=threat.eps, posinf=threat.eps)
        radius = reach.clamp(1e-3 * threat.eps, threat.eps)
        return cls(model, threat, x, y, radius, x.clone(), torch.full_like(radius, torch.inf))

    def _wide(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (self.x.ndim - 1))

    def _inside(self, adv: Tensor) -> Tensor:
        """Onto each sample's own ball (that of radius 1, in units of its own), then cut to the box."""
        unit, radius = Threat(self.threat.norm, 1.0, box=None), self._wide(self.radius)
        delta = (adv - self.x) / radius
        return self.threat.clip(self.x + radius * unit.project(delta, torch.zeros_like(delta)))

    def random_start(self, generator: torch.Generator) -> Tensor:
        """A random point of each sample's ball, which becomes the one just inside its nearest example."""
        self.radius = (0.98 * self.best).clamp_max(self.threat.eps)
        far = Threat(self.threat.norm, self.threat.eps, self.threat.box).random_start(self.x, generator)
        return self._inside(self.x + (far - self.x) * self._wide(self.radius / self.threat.eps))

    def _note(self, adv: Tensor, wrong: Tensor) -> None:
        """Keep the misclassified points that are nearer than any before."""
        size = self.threat.length(adv - self.x)
        nearer = wrong & (size < self.best) & (size <= self.threat.eps)
        self.best = torch.where(nearer, size, self.best)
        self.nearest = torch.where(self._wide(nearer), adv, self.nearest)

    def descend(self, objective: Objective, start: Tensor, steps: int) -> None:
        """Raise the objective while the balls close in on the boundary."""
        adv = previous = start
        for step in range(steps):
            _, gradient, logits = value_and_gradient(self.model, adv, self.y, objective)
            wrong = fooled(logits, self.y)
            self._note(adv, wrong)
            left = 0.5 * (1.0 + math.cos(math.pi * step / steps))
            change = _CHANGE * left + _LEAST
            grown = torch.minimum(self.radius * (1.0 + change), self.best * (1.0 - change))
            shrunk = torch.minimum(self.radius, self.best) * (1.0 - change)
            self.radius = torch.where(wrong, shrunk, grown).clamp_max(self.threat.eps)
            share = 1.0 if step == 0 else _MOMENTUM
            length = self._wide(share * (_STEP * left + 0.01) * self.radius)
            moved = adv + length * self.threat.direction(gradient, at=adv) + (1.0 - share) * (adv - previous)
            previous, adv = adv, self._inside(moved)
        _, logits = value(self.model, adv, self.y, objective)
        self._note(adv, fooled(logits, self.y))
