"""Certified Lipschitz constants by propagating an ellipsoid through the layers, sharpened by first-order optimisation.

A layer is z = A s followed by an elementwise activation whose difference quotients lie in [low, high]. If differences of
the state s lie in {Y^(1/2) v : ||v||_2 <= 1}, those of z lie in the ellipsoid of G = A Y A', and those of the activation's
output h in the ellipsoid of

    Y_next = M (G^-1 - T)^-1 M + R T^-1 R,     M = (low + high) / 2,  R = (high - low) / 2,

for every positive diagonal T with G^-1 > T. Proof: h = M z + R w with |w_j| <= |z_j|, so w'Tw <= z'Tz; minimise
z'(G^-1 - T)z + w'Tw over (z, w) with h fixed. Slopes [0, 1] give the recursion of LipSDP-Neuron in the form of ECLipsE
(X = Y^-1, Lambda = 4 T); slopes [1, 1] pass a value through, which is how skip connections travel. T = c I with
c = 1 / (2 lambda_max(G)) is ECLipsE-Fast. Adam over log T and over the size of T comes close to the semidefinite
programme. The size is a share of the largest admissible one: free T, tried too, gets stuck where G^-1 - T is nearly singular
(2 % above the programme where this one is 0.2 %).

From l_inf, the unit ball lies in the ellipsoid of diag(1 / gamma) for gamma > 0 with sum 1 (dual of the GeoLIP programme).
What is returned is evaluated once more in float64 with every rounding error added to the ellipsoids.

Sizes are carried outside, as powers of two: of each matrix, and of each ellipsoid after its layer. So neither a deep chain
of small slopes nor one of large norms leaves the range of float64, and what leaves it at the end is infinite, never zero.

Source: Fazlyab et al. 2019 (LipSDP, 1906.04893), Xu & Sivaranjani 2024 (ECLipsE, 2404.04375), Wang et al. 2022
(GeoLIP, 2203.01212); the form for any mixture of slopes is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.measure.spectrum import EPS64, inflate, power_up, shifted
from pinchpoint.records import Norm
from pinchpoint.utils.descent import lowest
from pinchpoint.utils.threads import one_thread

_CLOSEST = 1.0 - 1e-6
"""T stays this far from where G^-1 - T becomes singular."""
_ROUNDS = 6
"""Of power iteration a step."""
_EXACT_UP_TO = 32
"""Side of a matrix whose eigenvalues cost no more than power iteration, which lags behind where two are close."""
_MANY_THREADS_FROM = 1024
_VANISHED = 1e-300
"""More than entries below the smallest number of float64 can add to a spectral norm."""
_LEAST = 5e-324


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
    """G with |c . last(x - y)|^2 <= c'Gc 4^exponent ||x - y||_p^2 for every c. Where G is not finite nothing is known."""

    entries: Float[Tensor, "m m"]
    exponent: int

    def whole(self) -> float:
        """A constant from l_p to l_2."""
        top = float(_largest_eigenvalue(self.entries))
        if math.isnan(top):
            return math.inf
        return power_up(inflate(math.sqrt(inflate(max(0.0, top), 2 * len(self.entries))), 1), self.exponent)

    def rows(self) -> Float[Tensor, "m"]:
        """A constant from l_p to each output."""
        return self._up(self.entries.diagonal())

    def pairs(self) -> Float[Tensor, "m m"]:
        """A constant from l_p to the difference of each two outputs; zero on the diagonal."""
        squares = self.entries.diagonal()
        sums = squares[:, None] + squares
        return self._up(sums - 2.0 * self.entries + 8.0 * EPS64 * sums).fill_diagonal_(0.0)

    def _up(self, squares: Tensor) -> Tensor:
        roots = shifted(squares.clamp(min=0.0).sqrt() * (1.0 + 8.0 * EPS64), self.exponent)
        raised = torch.where(squares > 0, roots.nextafter(torch.full_like(roots, torch.inf)), 0.0)
        return torch.where(squares.isfinite(), raised, torch.inf)


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
    narrowed_steps: list[Step] = []
    size = steps[0].matrix.shape[1] if steps else 1
    box = torch.full((size,), radius, dtype=torch.float64, device=_device(steps))
    shape, exponent = _around_ball(norm, torch.zeros_like(box)), 0
    for place, step in enumerate(steps):
        scaled, top = _scaled(step)
        exponent += top
        form = _mapped(scaled.matrix, shape, scaled.error)
        # how far each entry can move: as far as the ellipsoid allows, and as intervals allow
        roots = form.diagonal().clamp(min=0.0).sqrt() * (1.0 + 8.0 * EPS64)
        within = torch.where(roots > 0, shifted(roots * inflate(radius, 1), exponent).clamp_min(_LEAST), 0.0)
        boxed = (step.matrix.abs() @ box + step.error * box.norm()) * (1.0 + 8.0 * size * EPS64)
        reach = torch.fmin(within.nan_to_num(nan=torch.inf), boxed.nan_to_num(nan=torch.inf))
        low, high = narrow(place, reach)
        narrowed_steps.append(replace(step, low=low, high=high))
        # the ellipsoid and the box after the activation
        scaled = replace(scaled, low=low, high=high)
        shape, up = _unit(_activated(form, scaled, _sized(form, scaled, torch.zeros_like(low), low.new_zeros(()))))
        exponent += up
        box = reach * torch.maximum(low.abs(), high.abs())
        size = len(box)
    return narrowed_steps


def _device(steps: Sequence[Step]) -> torch.device:
    return steps[0].matrix.device if steps else torch.device("cpu")


@dataclass(frozen=True)
class _Problem:
    """Layers scaled by powers of two to a largest entry near 1; ``exponent`` is the sum of what was taken out.

    A point is, one after another: the shape t of all T; for each step the logit of the share of the largest admissible size
    that its T has; the logits of gamma, which only l_inf looks at.
    """

    steps: tuple[Step, ...]
    last: Tensor
    norm: Norm
    error: float
    exponent: int
    directions: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Sequence[Step], last: Tensor, norm: Norm, error: float) -> _Problem:
        scaled = [_scaled(step) for step in steps]
        entries, error, top = _matrix_scaled(last, error)
        return cls(tuple(step for step, _ in scaled), entries, norm, error, sum(up for _, up in scaled) + top)

    def start(self) -> Tensor:
        """T = c I with half of the largest admissible c for each step, equal weights for the coordinates of l_inf."""
        return self.last.new_zeros(sum(self._sizes()))

    def value_and_gradient(self, point: Tensor, goal: Goal, *, exact: bool = False) -> tuple[float, Tensor]:
        """Log of the squared constant, without rounding errors; largest eigenvalues by power iteration if that will do."""
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            *logs, shares, weights = point.split(self._sizes())
            shape, exponent = _around_ball(self.norm, weights), 0
            for place, (step, t, share) in enumerate(zip(self.steps, logs, shares, strict=True)):
                form = _form(step.matrix, shape)
                exactly = exact or len(form) <= _EXACT_UP_TO
                top = _largest_eigenvalue if exactly else partial(self._top, place)
                shape, up = _unit(_propagated(form, step, _sized(form, step, t, share, top))[0])
                exponent += up
            value = _goal(_form(self.last, shape), goal) + exponent * math.log(4.0)
            if not (exact or bool(torch.isfinite(value))):
                return self.value_and_gradient(point, goal, exact=True)
            if not value.requires_grad:
                return float(value), torch.zeros_like(point)
            (slope,) = torch.autograd.grad(value, point)
        return value.detach().item(), slope

    @torch.no_grad()
    def certify(self, point: Tensor) -> Form:
        """The form of the last map, with every rounding error added."""
        *logs, shares, weights = point.split(self._sizes())
        shape, exponent = _around_ball(self.norm, weights), self.exponent
        for step, t, share in zip(self.steps, logs, shares, strict=True):
            form = _mapped(step.matrix, shape, step.error)
            shape, up = _unit(_activated(form, step, _sized(form, step, t, share)))
            exponent += up
        return Form(_mapped(self.last, shape, self.error), exponent)

    def _top(self, place: int, matrix: Tensor) -> Tensor:
        """The largest eigenvalue by power iteration from where it was last time; for autograd, v is a constant."""
        with torch.no_grad():
            v = self.directions.get(place)
            rounds = _ROUNDS
            if v is None or len(v) != len(matrix):
                v, rounds = matrix.abs().sum(1).sqrt(), 10 * _ROUNDS
            for _ in range(rounds):
                v = matrix @ v
                v = v / v.norm()
            self.directions[place] = v
        top: Tensor = v @ matrix @ v
        return top

    def _sizes(self) -> list[int]:
        first = self.steps[0].matrix if self.steps else self.last
        return [*(len(step.matrix) for step in self.steps), len(self.steps), first.shape[1]]


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """The largest eigenvalue; NaN of a matrix that is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((), torch.nan)
    top: Tensor = torch.linalg.eigvalsh(matrix)[-1]
    return top


def _sized(
    form: Tensor, step: Step, t: Tensor, share: Tensor, top: Callable[[Tensor], Tensor] = _largest_eigenvalue
) -> Tensor:
    """log T: t, moved to where T^(1/2) G T^(1/2) has this share (a logit) of the largest admissible eigenvalue, 1."""
    moving = _moving(form, step)
    if not bool(moving.any()):
        return t
    root = (t[moving] / 2).exp()
    largest = top(root[:, None] * form[moving][:, moving] * root)
    log_t: Tensor = t + torch.nn.functional.logsigmoid(share) - largest.log()
    return log_t


def _around_ball(norm: Norm, weights: Tensor) -> Tensor:
    """Diagonal of an ellipsoid around the unit ball."""
    if norm == "l2":
        return torch.ones_like(weights)
    shares = weights.softmax(0)
    diagonal: Tensor = shares.sum() * (1.0 + 4.0 * len(weights) * EPS64) / shares
    return diagonal


def _moving(form: Tensor, step: Step) -> Tensor:
    """Units whose slope is not fixed and whose input changes at all; for the others T is 0 and so is the slack."""
    return (step.high > step.low) & (form.diagonal() > 0)


def _goal(form: Tensor, goal: Goal) -> Tensor:
    """Log of the square of what is made small."""
    if goal == "whole":
        return _largest_eigenvalue(form).log()
    squares = form.diagonal()
    if goal == "largest row":
        return squares.amax().log()
    above = torch.triu_indices(len(form), len(form), 1, device=form.device)
    sums = squares[above[0]] + squares[above[1]]
    pairs = sums - 2.0 * form[above[0], above[1]]
    return pairs[pairs > 1e-12 * sums].log().mean()


def _propagated(form: Tensor, step: Step, log_t: Tensor) -> tuple[Tensor, Tensor]:
    """M (G^-1 - T)^-1 M + R T^-1 R, and a bound on the error of (G^-1 - T)^-1.

    (G^-1 - T)^-1 = G + B (I - K)^-1 B' with B = G E, K = E G E, E = T^(1/2), which needs no inverse of G.
    """
    middle, radius = (step.low + step.high) / 2, (step.high - step.low) / 2
    moving = _moving(form, step)
    if not bool(moving.any()):
        return middle[:, None] * form * middle, form.new_zeros(())
    root = (log_t[moving] / 2).exp()
    columns = form[:, moving] * root
    inner = root[:, None] * columns[moving]
    eye = torch.eye(len(inner), dtype=form.dtype, device=form.device)
    factor, failed = torch.linalg.cholesky_ex(eye - (inner + inner.T) / 2)
    half = torch.linalg.solve_triangular(factor, columns.T, upper=False)
    spread = half.T @ half + torch.where(failed > 0, torch.inf, 0.0)  # T is too large
    slack = torch.zeros_like(middle).masked_scatter(moving, (radius[moving] / root) ** 2)
    return middle[:, None] * (form + (spread + spread.T) / 2) * middle + torch.diag(slack), columns.norm()


def _activated(form: Tensor, step: Step, log_t: Tensor) -> Tensor:
    """The same, certified: T made smaller where it is too large, every rounding error added."""
    middle, moving = (step.low + step.high) / 2, _moving(form, step)
    if not bool(moving.any()):
        return middle[:, None] * form * middle * (1.0 + 16.0 * EPS64)
    root = (log_t[moving] / 2).exp()
    inner = root[:, None] * form[moving][:, moving] * root
    top = float(_largest_eigenvalue((inner + inner.T) / 2)) * (1.0 + 16.0 * len(inner) * EPS64)
    if not math.isfinite(top):
        return torch.full_like(form, torch.nan)
    smaller = min(1.0, _CLOSEST / top)
    following, columns = _propagated(form, step, log_t + math.log(smaller))
    # products, the solve with condition 1 / (1 - share), and the symmetrisation
    room = 16.0 * len(form) * EPS64 * (form.norm() + columns**2 / (1.0 - smaller * top) ** 2)
    return (following + torch.diag(room * middle**2)) * (1.0 + 16.0 * EPS64)


def _form(matrix: Tensor, shape: Tensor) -> Tensor:
    """matrix Y matrix'; Y may be a diagonal."""
    form = (matrix * shape if shape.ndim == 1 else matrix @ shape) @ matrix.T
    return (form + form.T) / 2


def _mapped(matrix: Tensor, shape: Tensor, error: float) -> Tensor:
    """matrix Y matrix', raised by what rounding may have hidden in the matrix and in the product."""
    form = _form(matrix, shape)
    room = 16.0 * sum(matrix.shape) * EPS64 * float(matrix.norm() ** 2 * shape.norm())
    raised = (matrix != 0).any(dim=1).to(form)  # a row of zeros gives exact zeros
    if error > 0.0:  # (A + E) Y (A + E)' <= (1 + s) A Y A' + (1 + 1/s) E Y E'
        share = 1e-9
        form = form * (1.0 + share)
        room += 2.0 / share * error * error * float(shape.norm())
        raised = torch.ones_like(raised)
    return form + torch.diag(room * raised)


def _scaled(step: Step) -> tuple[Step, int]:
    """A layer divided by the power of two near its largest entry, and the exponent of that power."""
    matrix, error, exponent = _matrix_scaled(step.matrix, step.error)
    return replace(step, matrix=matrix, error=error), exponent


def _matrix_scaled(matrix: Tensor, error: float) -> tuple[Tensor, float, int]:
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not 0.0 < largest < math.inf:  # zero, or a matrix that says nothing
        return matrix, error, 0
    exponent = math.frexp(largest)[1]
    divided = shifted(matrix, -exponent)
    # entries that vanish beside the largest are errors, so that their rows count as what they are
    vanished = _VANISHED if bool(((divided == 0) & (matrix != 0)).any()) else 0.0
    return divided, (power_up(error, -exponent) + vanished), exponent


def _unit(shape: Tensor) -> tuple[Tensor, int]:
    """An ellipsoid divided by the power of four near its largest semi-axis squared, and the exponent of that power."""
    largest = float(shape.detach().diagonal().max()) if len(shape) else 0.0
    if not 0.0 < largest < math.inf:
        return shape, 0
    exponent = math.frexp(largest)[1] // 2
    return shifted(shape, -2 * exponent), exponent
