"""Certified Lipschitz constants by propagating an ellipsoid through the layers, sharpened by first-order optimisation.

A layer is z = A s followed by an elementwise activation whose difference quotients lie in [low, high]. If differences of
the state s lie in {Y^(1/2) v : ||v||_2 <= 1}, those of z lie in the ellipsoid of G = A Y A', and those of the activation's
output h in the ellipsoid of

    Y_next = M (G^-1 - T)^-1 M + R T^-1 R,     M = (low + high) / 2,  R = (high - low) / 2,

for every positive diagonal T with G^-1 > T. Proof: h = M z + R w with |w_j| <= |z_j|, so w'Tw <= z'Tz; minimise
z'(G^-1 - T)z + w'Tw over (z, w) with h fixed. Slopes [0, 1] give the recursion of LipSDP-Neuron in the form of ECLipsE
(X = Y^-1, Lambda = 4 T); slopes [1, 1] pass a value through, which is how skip connections travel. T = c I with
c = 1 / (2 lambda_max(G)) is ECLipsE-Fast. Adam over log T and the size of T comes close to the semidefinite programme.

From l_inf, the unit ball lies in the ellipsoid of diag(1 / gamma) for gamma > 0 with sum 1 (dual of the GeoLIP programme).
What is returned is evaluated once more in float64 with every rounding error added to the ellipsoids.

Source: Fazlyab et al. 2019 (LipSDP, 1906.04893), Xu & Sivaranjani 2024 (ECLipsE, 2404.04375), Wang et al. 2022
(GeoLIP, 2203.01212); the form for any mixture of slopes is ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.measure.spectrum import EPS64, inflate, times_up
from pinchpoint.records import Norm

_RATE = 0.1
_CLOSEST = 1.0 - 1e-6
"""T stays this far from where G^-1 - T becomes singular."""


@dataclass(frozen=True)
class Step:
    """z = matrix @ state, then an activation with difference quotients in [low, high].

    ``error`` bounds the spectral norm of what rounding did to ``matrix``.
    """

    matrix: Float[Tensor, "h d"]
    low: Float[Tensor, "h"]
    high: Float[Tensor, "h"]
    error: float = 0.0


@dataclass(frozen=True)
class Form:
    """G with |c . last(x - y)|^2 <= c'Gc ||x - y||_p^2 for every c, up to the square of ``scale``."""

    entries: Float[Tensor, "m m"]
    scale: float

    def whole(self) -> float:
        """A constant from l_p to l_2."""
        top = max(0.0, float(torch.linalg.eigvalsh(self.entries)[-1]))
        return times_up(inflate(math.sqrt(inflate(top, 2 * len(self.entries))), 1), self.scale)

    def rows(self) -> Float[Tensor, "m"]:
        """A constant from l_p to each output."""
        return self._up(self.entries.diagonal())

    def pairs(self) -> Float[Tensor, "m m"]:
        """A constant from l_p to the difference of each two outputs; zero on the diagonal."""
        squares = self.entries.diagonal()
        sums = squares[:, None] + squares
        return self._up((sums - 2.0 * self.entries + 8.0 * EPS64 * sums).fill_diagonal_(0.0))

    def _up(self, squares: Tensor) -> Tensor:
        roots = squares.clamp(min=0.0).sqrt() * (1.0 + 8.0 * EPS64) * self.scale
        return torch.where(roots > 0, roots.nextafter(torch.full_like(roots, torch.inf)), 0.0)


@dataclass(frozen=True)
class Ellipsoid:
    """What an optimisation found, certified; ``fast`` is the form before any of its ``steps``."""

    best: Form
    fast: Form
    steps: int


Narrow = Callable[[int, Tensor], tuple[Tensor, Tensor]]
Goal = Literal["whole", "largest row", "pairs"]


def ellipsoid_bound(
    steps: Sequence[Step],
    last: Float[Tensor, "m n"],
    norm: Norm,
    *,
    goal: Goal,
    error: float = 0.0,
    seconds: float = 10.0,
    most: int = 150,
) -> Ellipsoid:
    """Bound last @ step_n(... step_1(x)) from l_2 or l_inf.

    Args:
        steps: layers, first to last.
        last: the final linear map.
        norm: of the input.
        goal: what the optimisation makes small: the whole (l_2 to l_2), the largest row (l_p to l_inf), or the geometric
            mean over pairs of rows of the constant of their difference (margins).
        error: bound on the spectral norm of what rounding did to ``last``.
        seconds: no new optimisation step begins after this time; with 0 there is none.
        most: optimisation steps, at most.

    >>> layer = Step(torch.eye(2).double() * 3, torch.zeros(2).double(), torch.ones(2).double())
    >>> round(ellipsoid_bound([layer], torch.tensor([[1.0, 1.0]]).double(), "l2", goal="whole").best.whole(), 4)
    4.2426
    """
    begin = time.perf_counter()
    problem = _Problem.of(steps, last, norm, error)
    parameters = problem.start()
    fast = problem.certify(parameters)
    best, best_loss, done = parameters, math.inf, 0
    parameters = [parameter.clone().requires_grad_() for parameter in parameters]
    optimiser = torch.optim.Adam(parameters)
    while done < most and time.perf_counter() - begin < seconds:
        optimiser.zero_grad()
        loss = problem.loss(parameters, goal)
        if not (bool(torch.isfinite(loss)) and loss.requires_grad):  # zero, or linear: nothing to improve
            break
        if loss.detach() < best_loss:
            best_loss, best = loss.detach().item(), [parameter.detach().clone() for parameter in parameters]
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1e-2 + 0.5 * (1.0 + math.cos(math.pi * done / most)))
        optimiser.step()
        done += 1
    return Ellipsoid(problem.certify(best), fast, done)


@torch.no_grad()
def narrowed(steps: Sequence[Step], norm: Norm, radius: float, narrow: Narrow) -> list[Step]:
    """Steps with the slopes that can occur on a ball: those of units that cannot change sides there are known.

    Args:
        steps: layers, first to last.
        norm: of the ball.
        radius: of the ball.
        narrow: given the place of a step and how far each entry of its z can move from its value at the centre, the
            slopes that can occur.

    Each entry moves at most as far as the ellipsoid of z allows, and as intervals allow.
    """
    found: list[Step] = []
    size = steps[0].matrix.shape[1] if steps else 1
    shape, scale = _first_shape(norm, torch.zeros(size, dtype=torch.float64, device=_device(steps))), 1.0
    box = torch.full((size,), radius, dtype=torch.float64, device=shape.device)
    for place, step in enumerate(steps):
        top = _top(step.matrix)
        scaled = replace(step, matrix=step.matrix / top, error=inflate(step.error / top, 1))
        form = _mapped(scaled.matrix, shape, scaled.error)
        scale = times_up(scale, top)
        within = form.diagonal().clamp(min=0.0).sqrt() * (1.0 + 8.0 * EPS64) * times_up(scale, radius)
        boxed = (step.matrix.abs() @ box + step.error * box.norm()) * (1.0 + 8.0 * size * EPS64)
        reach = torch.minimum(within, boxed)
        low, high = narrow(place, reach)
        found.append(replace(step, low=low, high=high))
        start = shape.new_zeros(len(low)), shape.new_zeros(())
        shape = _activated(form, replace(scaled, low=low, high=high), *start, certified=True)
        box = reach * torch.maximum(low.abs(), high.abs())
        size = len(box)
    return found


def _device(steps: Sequence[Step]) -> torch.device:
    return steps[0].matrix.device if steps else torch.device("cpu")


@dataclass(frozen=True)
class _Problem:
    """Layers scaled so that the largest entry of each matrix is 1; ``scale`` is the product of what was taken out."""

    steps: tuple[Step, ...]
    last: Tensor
    norm: Norm
    error: float
    scale: float

    @classmethod
    def of(cls, steps: Sequence[Step], last: Tensor, norm: Norm, error: float) -> _Problem:
        scaled, tops = [], []
        for step in steps:
            top = _top(step.matrix)
            tops.append(top)
            scaled.append(Step(step.matrix / top, step.low, step.high, inflate(step.error / top, 1)))
        top = _top(last)
        return cls(tuple(scaled), last / top, norm, inflate(error / top, 1), times_up(*tops, top))

    def start(self) -> list[Tensor]:
        """log T = 0 and half of its largest admissible size for each step; equal weights for the coordinates of l_inf."""
        parameters = []
        for step in self.steps:
            parameters += [self.last.new_zeros(len(step.matrix)), self.last.new_zeros(())]
        first = self.steps[0].matrix if self.steps else self.last
        return [*parameters, self.last.new_zeros(first.shape[1])]

    def loss(self, parameters: Sequence[Tensor], goal: Goal) -> Tensor:
        """Log of the squared constant, for autograd; without rounding errors."""
        shape = self._propagate(parameters, certified=False)
        if goal == "whole":
            top: Tensor = torch.linalg.eigvalsh(_form(self.last, shape))[-1]
            return top.log()
        form = _form(self.last, shape)
        squares = form.diagonal()
        if goal == "largest row":
            return squares.amax().log()
        above = torch.triu_indices(len(form), len(form), 1, device=form.device)
        pairs = squares[above[0]] + squares[above[1]] - 2.0 * form[above[0], above[1]]
        return pairs[pairs > 0].log().mean()

    @torch.no_grad()
    def certify(self, parameters: Sequence[Tensor]) -> Form:
        """The form of the last map, with every rounding error added."""
        return Form(_mapped(self.last, self._propagate(parameters, certified=True), self.error), self.scale)

    def _propagate(self, parameters: Sequence[Tensor], *, certified: bool) -> Tensor:
        """Y, the shape matrix of the differences of the state before the last map."""
        shape = _first_shape(self.norm, parameters[-1])
        for step, log_t, size in zip(self.steps, parameters[0:-1:2], parameters[1:-1:2], strict=True):
            form = _mapped(step.matrix, shape, step.error) if certified else _form(step.matrix, shape)
            shape = _activated(form, step, log_t, size, certified=certified)
        return shape


def _first_shape(norm: Norm, weights: Tensor) -> Tensor:
    """An ellipsoid around the unit ball."""
    if norm == "l2":
        return torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    shares = weights.softmax(0)
    return torch.diag(shares.sum() * (1.0 + 4.0 * len(weights) * EPS64) / shares)


def _activated(form: Tensor, step: Step, log_t: Tensor, size: Tensor, *, certified: bool) -> Tensor:
    """M (G^-1 - T)^-1 M + R T^-1 R with T = c exp(log_t), c = sigmoid(size) / lambda_max(T^(1/2) G T^(1/2)).

    (G^-1 - T)^-1 = G + c B (I - c K)^-1 B' with B = G E, K = E G E, E = exp(log_t / 2), which needs no inverse of G.
    """
    middle, radius = (step.low + step.high) / 2, (step.high - step.low) / 2
    moving = (radius > 0) & (form.diagonal() > 0)
    if not bool(moving.any()):
        return middle[:, None] * form * middle
    whole = bool(moving.all())
    root = (log_t / 2).exp()
    root = root if whole else root[moving]
    columns = (form if whole else form[:, moving]) * root
    inner = root[:, None] * (columns if whole else columns[moving])
    inner = (inner + inner.T) / 2
    top = torch.linalg.eigvalsh(inner)[-1]
    if certified:
        top = top * (1.0 + 16.0 * len(inner) * EPS64)
    share = torch.sigmoid(size) * _CLOSEST
    c = share / top
    eye = torch.eye(len(inner), dtype=form.dtype, device=form.device)
    spread = c * (columns @ torch.linalg.solve(eye - c * inner, columns.T))
    full = form + (spread + spread.T) / 2
    if certified:  # products, the solve with condition 1 / (1 - share), and the symmetrisation
        room = 16.0 * len(form) * EPS64 * (form.norm() + c * columns.norm() ** 2 / (1.0 - share) ** 2)
        full = full + room * torch.eye(len(form), dtype=form.dtype, device=form.device)
    slack = torch.zeros_like(middle)
    slack = slack.masked_scatter(moving, (radius if whole else radius[moving]) ** 2 / (c * root**2))
    following: Tensor = middle[:, None] * full * middle + torch.diag(slack)
    return following * (1.0 + 16.0 * EPS64) if certified else following


def _form(matrix: Tensor, shape: Tensor) -> Tensor:
    form = matrix @ shape @ matrix.T
    return (form + form.T) / 2


def _mapped(matrix: Tensor, shape: Tensor, error: float) -> Tensor:
    """matrix Y matrix', raised by what rounding may have hidden in the matrix and in the product."""
    form = _form(matrix, shape)
    room = 16.0 * sum(matrix.shape) * EPS64 * float(matrix.norm() ** 2 * shape.norm())
    if error > 0.0:  # (A + E) Y (A + E)' <= (1 + s) A Y A' + (1 + 1/s) E Y E'
        share = 1e-9
        form = form * (1.0 + share)
        room += 2.0 / share * error**2 * float(shape.norm())
    return form + room * torch.eye(len(form), dtype=form.dtype, device=form.device) if room > 0 else form


def _top(matrix: Tensor) -> float:
    """The largest magnitude; 1 for a zero matrix."""
    return float(matrix.abs().max()) or 1.0
