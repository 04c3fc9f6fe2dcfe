"""Certified Lipschitz constants by propagating an ellipsoid through the layers, sharpened by first-order optimisation.

A layer is z = A s followed by an elementwise activation whose difference quotients lie in [low, high]. If differences of
the state s lie in {Y^(1/2) v : ||v||_2 <= 1}, those of z lie in the ellipsoid of G = A Y A', and those of the activation's
output h in the ellipsoid of

    Y_next = M (G^-1 - T)^-1 M + R T^-1 R,     M = (low + high) / 2,  R = (high - low) / 2,

for every positive diagonal T with G^-1 > T. Proof: h = M z + R w with |w_j| <= |z_j|, so w'Tw <= z'Tz; minimise
z'(G^-1 - T)z + w'Tw over (z, w) with h fixed. Slopes [0, 1] give the recursion of LipSDP-Neuron in the form of ECLipsE
(X = Y^-1, Lambda = 4 T); slopes [1, 1] pass a value through, which is how skip connections travel. T = c I with
c = 1 / (2 lambda_max(G)) is ECLipsE-Fast. Adam over log T, with gradients written out, comes close to the semidefinite
programme at one Cholesky factor a layer and step.

From l_inf, the unit ball lies in the ellipsoid of diag(1 / gamma) for gamma > 0 with sum 1 (dual of the GeoLIP programme).
What is returned is evaluated once more in float64 with every rounding error added to the ellipsoids.

Source: Fazlyab et al. 2019 (LipSDP, 1906.04893), Xu & Sivaranjani 2024 (ECLipsE, 2404.04375), Wang et al. 2022
(GeoLIP, 2203.01212); the form for any mixture of slopes is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.descent import lowest
from pinchpoint.measure.spectrum import EPS64, inflate, times_up
from pinchpoint.measure.threads import one_thread
from pinchpoint.records import Norm

_CLOSEST = 1.0 - 1e-6
"""T stays this far from where G^-1 - T becomes singular."""
_HARDNESS = 1000.0
"""Of the soft maximum over eigenvalues or rows: at n of them it is at most log(n) / 1000 too large."""
_MANY_THREADS_FROM = 1024


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
        return torch.where(squares > 0, roots.nextafter(torch.full_like(roots, torch.inf)), 0.0)


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
    problem = _Problem.of(steps, last, norm, error)
    with one_thread(max(len(problem.last), *(len(step.matrix) for step in problem.steps), 1) < _MANY_THREADS_FROM):
        start = problem.start()
        fast = problem.certify(start)
        done = 0

        def value_and_gradient(point: Tensor) -> tuple[float, Tensor]:
            nonlocal done
            done += 1
            return problem.value_and_gradient(point, goal)

        if most == 0 or seconds <= 0:
            return Ellipsoid(fast, fast, 0)
        value, slope = problem.value_and_gradient(start, goal)
        if not (math.isfinite(value) and bool(slope.any())):  # zero, or linear: nothing to improve
            return Ellipsoid(fast, fast, 0)
        best = lowest(start, value_and_gradient, most, seconds=seconds)
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
    box = torch.full((size,), radius, dtype=torch.float64, device=_device(steps))
    shape, scale = _around_ball(norm, torch.zeros_like(box)), 1.0
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
        scaled = replace(scaled, low=low, high=high)
        shape = _activated(form, scaled, _closed_form(form, scaled))
        box = reach * torch.maximum(low.abs(), high.abs())
        size = len(box)
    return found


def _device(steps: Sequence[Step]) -> torch.device:
    return steps[0].matrix.device if steps else torch.device("cpu")


@dataclass(frozen=True)
class _Problem:
    """Layers scaled so that the largest entry of each matrix is 1; ``scale`` is the product of what was taken out.

    A point is log T of all steps, one after another, and the logits of gamma, which only l_inf looks at.
    """

    steps: tuple[Step, ...]
    last: Tensor
    norm: Norm
    error: float
    scale: float
    gram: Tensor

    @classmethod
    def of(cls, steps: Sequence[Step], last: Tensor, norm: Norm, error: float) -> _Problem:
        scaled, tops = [], []
        for step in steps:
            top = _top(step.matrix)
            tops.append(top)
            scaled.append(Step(step.matrix / top, step.low, step.high, inflate(step.error / top, 1)))
        top = _top(last)
        last = last / top
        first = scaled[0].matrix if scaled else last
        gram = first @ first.T if norm == "l2" else first.new_empty(0, 0)
        return cls(tuple(scaled), last, norm, inflate(error / top, 1), times_up(*tops, top), gram)

    @property
    def matrices(self) -> list[Tensor]:
        """Of all steps, and the last map."""
        return [*(step.matrix for step in self.steps), self.last]

    def start(self) -> Tensor:
        """The closed form of T for each step, equal weights for the coordinates of l_inf."""
        weights = self.last.new_zeros(self.matrices[0].shape[1])
        form, found = self._first_form(weights), []
        for step, after in zip(self.steps, self.matrices[1:], strict=True):
            found.append(_closed_form(form, step))
            form = _Pass.of(form, step, found[-1], after).form
        return torch.cat([*found, weights])

    def value_and_gradient(self, point: Tensor, goal: Goal) -> tuple[float, Tensor]:
        """Log of the squared constant, its largest value softened, without rounding errors.

        Infinity where some T is too large, with a slope that makes all of them smaller.
        """
        *logs, weights = point.split(self._sizes())
        form, passes = self._first_form(weights), []
        for step, log_t, after in zip(self.steps, logs, self.matrices[1:], strict=True):
            passed = _Pass.of(form, step, log_t, after)
            if passed.failed:
                return math.inf, torch.ones_like(point)
            passes.append(passed)
            form = passed.form
        value, z = _goal(form, goal)
        slopes: list[Tensor] = []
        for passed in reversed(passes):
            slope, z = passed.back(z)
            slopes.insert(0, slope)
        share = weights.softmax(0)
        slope = -(self.matrices[0].T @ z).square().sum(1) / share * (self.norm == "linf")
        return value, torch.cat([*slopes, slope - share * slope.sum()])

    @torch.no_grad()
    def certify(self, point: Tensor) -> Form:
        """The form of the last map, with every rounding error added."""
        *logs, weights = point.split(self._sizes())
        shape = _around_ball(self.norm, weights)
        for step, log_t in zip(self.steps, logs, strict=True):
            shape = _activated(_mapped(step.matrix, shape, step.error), step, log_t)
        return Form(_mapped(self.last, shape, self.error), self.scale)

    def _sizes(self) -> list[int]:
        return [*(len(step.matrix) for step in self.steps), self.matrices[0].shape[1]]

    def _first_form(self, weights: Tensor) -> Tensor:
        first = self.matrices[0]
        return self.gram if self.norm == "l2" else (first / weights.softmax(0)) @ first.T


@dataclass(frozen=True)
class _Pass:
    """One activation and the map after it, forward and backward.

    With N = (G^-1 - T)^-1, U = M A' and a slack of R T^-1 R, ``form`` is G_next = U'NU + A slack A'. For a loss with
    dL/dG_next = Z Z' the derivatives are dL/dT = diag(NU Z Z' U'N) - slack / T diag(A'Z Z'A) and dL/dG = (VZ)(VZ)' with
    V = (I + TN) U, so that only thin matrices travel back.
    """

    form: Tensor
    after: Tensor
    t: Tensor
    slack: Tensor
    near: Tensor
    v: Tensor
    failed: bool

    @classmethod
    def of(cls, form: Tensor, step: Step, log_t: Tensor, after: Tensor) -> _Pass:
        middle, radius = (step.low + step.high) / 2, (step.high - step.low) / 2
        moving = _moving(form, step)
        t = torch.where(moving, log_t.exp(), 0.0)
        root = t.sqrt()[:, None]
        eye = torch.eye(len(form), dtype=form.dtype, device=form.device)
        factor, info = torch.linalg.cholesky_ex(eye - root * form * root.T)
        u = (after * middle).T
        near = form @ u
        near = near + form @ (root * torch.cholesky_solve(root * near, factor))  # NU = GU + GE(I - EGE)^-1 EGU, E E = T
        slack = torch.where(moving, radius**2 / t, 0.0)
        following = u.T @ near + (after * slack) @ after.T
        return cls((following + following.T) / 2, after, t, slack, near, u + t[:, None] * near, bool(info))

    def back(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """dL/d log T, and Z of the form before."""
        slope = self.t * (self.near @ z).square().sum(1) - self.slack * (self.after.T @ z).square().sum(1)
        return slope, self.v @ z


def _around_ball(norm: Norm, weights: Tensor) -> Tensor:
    """Diagonal of an ellipsoid around the unit ball."""
    if norm == "l2":
        return torch.ones_like(weights)
    shares = weights.softmax(0)
    diagonal: Tensor = shares.sum() * (1.0 + 4.0 * len(weights) * EPS64) / shares
    return diagonal


def _closed_form(form: Tensor, step: Step) -> Tensor:
    """log T for T = I / (2 lambda_max(G))."""
    moving = _moving(form, step)
    top = float(torch.linalg.eigvalsh(form[moving][:, moving])[-1]) if bool(moving.any()) else 1.0
    return torch.full_like(form.diagonal(), -math.log(2.0 * top))


def _moving(form: Tensor, step: Step) -> Tensor:
    """Units whose slope is not fixed and whose input changes at all; for the others T is 0 and so is the slack."""
    return (step.high > step.low) & (form.diagonal() > 0)


def _goal(form: Tensor, goal: Goal) -> tuple[float, Tensor]:
    """What is made small, and Z with ZZ' = its derivative."""
    if goal == "pairs":
        squares = form.diagonal()
        sums = squares[:, None] + squares
        pairs = (sums - 2.0 * form).fill_diagonal_(0.0)
        seen = pairs > 1e-12 * sums
        weights = torch.where(seen, 1.0 / pairs, 0.0) / seen.sum().clamp(min=1)
        values, vectors = torch.linalg.eigh(2.0 * (weights.sum(1).diag() - weights))
        value = float(pairs[seen].log().mean()) if bool(seen.any()) else -math.inf
        return value, vectors * values.clamp(min=0.0).sqrt()
    if goal == "whole":
        values, vectors = torch.linalg.eigh(form)
    else:
        values, vectors = form.diagonal(), torch.eye(len(form), dtype=form.dtype, device=form.device)
    top = values.max()
    if not bool(top > 0):
        return -math.inf, vectors
    heights = _HARDNESS * (values / top).clamp(min=1e-300).log()
    shares = heights.softmax(0)
    seen = shares > 1e-12
    value = float(top.log() + heights.logsumexp(0) / _HARDNESS)
    return value, vectors[:, seen] * (shares[seen] / values[seen]).sqrt()


def _activated(form: Tensor, step: Step, log_t: Tensor) -> Tensor:
    """M (G^-1 - T)^-1 M + R T^-1 R, where T = c exp(log_t) and c is 1, or less where T was too large.

    (G^-1 - T)^-1 = G + c B (I - c K)^-1 B' with B = G E, K = E G E, E = exp(log_t / 2), which needs no inverse of G.
    """
    middle, radius = (step.low + step.high) / 2, (step.high - step.low) / 2
    moving = _moving(form, step)
    if not bool(moving.any()):
        return middle[:, None] * form * middle * (1.0 + 16.0 * EPS64)
    root = (log_t[moving] / 2).exp()
    columns = form[:, moving] * root
    inner = root[:, None] * columns[moving]
    inner = (inner + inner.T) / 2
    top = float(torch.linalg.eigvalsh(inner)[-1]) * (1.0 + 16.0 * len(inner) * EPS64)
    c = min(1.0, _CLOSEST / top)
    share = c * top
    eye = torch.eye(len(inner), dtype=form.dtype, device=form.device)
    spread = c * (columns @ torch.linalg.solve(eye - c * inner, columns.T))
    full = form + (spread + spread.T) / 2
    # products, the solve with condition 1 / (1 - share), and the symmetrisation
    room = 16.0 * len(form) * EPS64 * (form.norm() + c * columns.norm() ** 2 / (1.0 - share) ** 2)
    full = full + room * torch.eye(len(form), dtype=form.dtype, device=form.device)
    slack = torch.zeros_like(middle).masked_scatter(moving, radius[moving] ** 2 / (c * root**2))
    following: Tensor = (middle[:, None] * full * middle + torch.diag(slack)) * (1.0 + 16.0 * EPS64)
    return following


def _mapped(matrix: Tensor, shape: Tensor, error: float) -> Tensor:
    """matrix Y matrix', raised by what rounding may have hidden in the matrix and in the product; Y may be a diagonal."""
    form = (matrix * shape if shape.ndim == 1 else matrix @ shape) @ matrix.T
    form = (form + form.T) / 2
    room = 16.0 * sum(matrix.shape) * EPS64 * float(matrix.norm() ** 2 * shape.norm())
    raised = (matrix != 0).any(dim=1).to(form)  # a row of zeros gives exact zeros
    if error > 0.0:  # (A + E) Y (A + E)' <= (1 + s) A Y A' + (1 + 1/s) E Y E'
        share = 1e-9
        form = form * (1.0 + share)
        room += 2.0 / share * error**2 * float(shape.norm())
        raised = torch.ones_like(raised)
    return form + torch.diag(room * raised)


def _top(matrix: Tensor) -> float:
    """The largest magnitude; 1 for a zero matrix."""
    return float(matrix.abs().max()) or 1.0
