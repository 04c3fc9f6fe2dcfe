"""Networks with unusual forward passes, generated from a seed: what people write, and what traces, gradients or rules
get wrong.

A network is a list of steps on values of shape (n, width), each drawn from ``HONEST``, whose answers a bound may be given
for, or from ``DISHONEST``, which freeze, draw, look at the batch or decide by values. What is true of a network is found by
calling it: nothing here differentiates.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinchpoint.bound import lipschitz, margins, trace
from pinchpoint.bound.lipschitz import uppers_by_method
from pinchpoint.bound.network.trace import Network
from pinchpoint.errors import ContradictionError, ModelError, PinchpointError
from pinchpoint.records import Norm

F64 = torch.float64
Step = Callable[["Generated", Tensor], Tensor]
EXTREMES = [0.1, 10.0, 1e-4, 1e4, 1e15, 1e-15, 1e30, 1e-30, 1e-150, 1e150, 1e-200, 1e-300]
MOST = 24
"""Width from which on no step widens any more."""


class StraightThrough(torch.autograd.Function):
    """Forward: twice the value's positive part. Backward: nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.relu() * 2

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class Generated(nn.Module):
    """Steps in a row; ``earlier`` are the values before the current one, ``calls`` counts, ``watch`` keeps the largest."""

    def __init__(self, steps: list[Step], tensors: list[Tensor]) -> None:
        super().__init__()
        self.steps, self.calls, self.watch, self.largest = steps, 0, False, 0.0
        self.weights = nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.earlier: list[Tensor] = []
        for step in self.steps:
            self.earlier.append(x)
            x = step(self, x)
            self.note(x)
        self.earlier = []
        return x

    def note(self, x: Tensor) -> None:
        """Keep the largest finite magnitude seen."""
        if self.watch:
            self.largest = max(self.largest, float(x.abs().nan_to_num(nan=0.0, posinf=0.0).max()))


@dataclass
class Maker:
    """Draws steps; keeps the weights they use and the width of each value so far."""

    seed: int
    widths: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng, self.numbers = random.Random(self.seed), np.random.default_rng(self.seed)

    @property
    def width(self) -> int:
        return self.widths[-1]

    def weight(self, *shape: int, scale: float | None = None) -> int:
        """A new weight's place."""
        if scale is None:
            scale = self.rng.choice([1.0] * 30 + EXTREMES)
        values = self.numbers.standard_normal(shape)
        style = self.rng.random()
        if style < 0.1 and len(shape) == 2:  # rank one
            values = np.outer(values[:, 0], values[0])
        elif style < 0.2:  # rows of zeros
            values[self.rng.randrange(shape[0])] = 0.0
        elif style < 0.25:
            values = np.ones(shape)
        self.tensors.append(torch.from_numpy(values * scale / max(1, shape[-1]) ** 0.5))
        return len(self.tensors) - 1

    def step(self, make: Callable[[Maker], Step | None]) -> Step | None:
        """A step, if it fits here; the width after it is found by running it."""
        before = len(self.tensors)
        made = make(self)
        if made is None:
            del self.tensors[before:]
        return made


HONEST: list[Callable[[Maker], Step | None]] = []
DISHONEST: list[Callable[[Maker], Step | None]] = []


def honest(make):
    HONEST.append(make)
    return make


def dishonest(make):
    DISHONEST.append(make)
    return make


def _out(m: Maker) -> int:
    return m.rng.randint(1, 5)


@honest
def dense(m):
    w, b = m.weight(_out(m), m.width), m.rng.random() < 0.5
    rows = m.tensors[w].shape[0]
    c = m.weight(rows) if b else None
    return lambda s, x: F.linear(x, s.weights[w], None if c is None else s.weights[c])


HONEST.extend([dense] * 30)


@honest
def matrix_product(m):
    w, how = m.weight(m.width, _out(m)), m.rng.randrange(4)
    if how == 0:
        return lambda s, x: x @ s.weights[w]
    if how == 1:
        return lambda s, x: torch.einsum("bi,ij->bj", x, s.weights[w])
    if how == 2:
        return lambda s, x: torch.einsum("ij,bi->bj", s.weights[w], x)
    c = m.weight(m.tensors[w].shape[1])
    alpha = m.rng.choice([1, -2, 0.5])
    return lambda s, x: torch.addmm(s.weights[c], x, s.weights[w], alpha=alpha)


ACTIVATIONS = [
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish, F.hardsigmoid,
    F.softshrink, F.logsigmoid, torch.tanh, torch.sigmoid, torch.abs, torch.sin, torch.cos,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.elu(x, 2.5), lambda x: F.leaky_relu(x, -1.5),
    lambda x: F.leaky_relu(x, 3.0), lambda x: F.softplus(x, threshold=40), lambda x: F.softplus(x, 3.0, 40.0),
    lambda x: F.threshold(x, 0.5, 0.5), lambda x: x.clamp(-0.3, 0.4), lambda x: x.clamp(min=0.1),
    lambda x: x.clamp(max=0.2), lambda x: torch.maximum(x, x.new_tensor(0.3)),
    lambda x: F.relu(x, inplace=False), lambda x: F.dropout(x, 0.5, False), lambda x: F.celu(x, 0.3),
]  # fmt: skip
UNBOUNDED = [
    F.hardshrink, F.softplus, lambda x: F.threshold(x, 0.5, 0.0), lambda x: x.round(), lambda x: x.sign(), lambda x: x**2,
    F.rrelu, torch.exp, lambda x: x.data, lambda x: 1 / x, lambda x: x / x.abs().amax(1, keepdim=True),
]  # fmt: skip


@honest
def activation(m):
    f = m.rng.choice(ACTIVATIONS)
    return lambda s, x: f(x)


HONEST.extend([activation] * 25)


@honest
def unbounded(m):
    f = m.rng.choice(UNBOUNDED)
    return lambda s, x: f(x)


@honest
def parametric(m):
    w = m.weight(m.width, scale=1.0)
    return lambda s, x: F.prelu(x, s.weights[w])


@honest
def stopped(m):
    how, factor = m.rng.randrange(7), m.rng.choice([0.01, 0.5, 3.0, -1.0])
    if how == 0:
        return lambda s, x: x.detach()
    if how == 1:
        return lambda s, x: x * factor + (x - x * factor).detach()
    if how == 2:
        return lambda s, x: x + (factor * x).detach()
    if how == 3:
        return lambda s, x: StraightThrough.apply(x)
    if how == 4:

        def without(s, x):
            with torch.no_grad():
                return x * factor

        return without
    if how == 5:
        return lambda s, x: x.detach().clone() - x * factor
    return lambda s, x: (2 * x).detach() - x


HONEST.extend([stopped] * 10)


@honest
def residual(m):
    places = [i for i, width in enumerate(m.widths[:-1]) if width == m.width]
    if not places:
        return None
    at, how = m.rng.choice(places), m.rng.randrange(6)
    if how == 0:
        return lambda s, x: x + s.earlier[at]
    if how == 1:
        return lambda s, x: x - s.earlier[at]
    if how == 2:
        return lambda s, x: torch.add(x, s.earlier[at], alpha=-3)
    if how == 3 and m.rng.random() < 0.2:  # in-place operations are slow to trace

        def in_place(s, x):
            x = x * 1.0
            x += s.earlier[at]
            return x

        return in_place
    if how == 4:
        return lambda s, x: torch.rsub(s.earlier[at], x)
    return lambda s, x: torch.stack([x, s.earlier[at]], 1).sum(1)


HONEST.extend([residual] * 8)


@honest
def beside(m):
    at, how = m.rng.randrange(len(m.widths)), m.rng.randrange(6)
    if m.width + m.widths[at] > MOST:
        return None
    fill = m.rng.choice([0.0, 5.0, -float("inf"), 1e300])

    def constant(x, width):
        return torch.full((len(x), width), fill, dtype=x.dtype)

    if how == 0:
        return lambda s, x: torch.cat([x, [*s.earlier, x][at]], 1)
    if how == 1:
        return lambda s, x: torch.cat([x, constant(x, 2)], 1).relu()
    if how == 2:
        return lambda s, x: torch.cat([x, constant(x, 1), x.abs()], 1).clamp(-1, 7)
    if how == 3:
        return lambda s, x: torch.cat([x, constant(x, 2)], 1)
    if how == 4:
        return lambda s, x: torch.stack([x, -x], 2).flatten(1)
    return lambda s, x: F.pad(x, (1, 1), value=0.7)


HONEST.extend([beside] * 6)


@honest
def rearranged(m):
    how, width = m.rng.randrange(12), m.width
    picks = [m.rng.randrange(width) for _ in range(m.rng.randint(1, 5))]
    return [
        lambda s, x: x.flip(1),
        lambda s, x: x.roll(1, 1),
        lambda s, x: x[:, picks],
        lambda s, x: x[:, : max(1, width // 2)],
        lambda s, x: x.chunk(2, 1)[0],
        lambda s, x: x.reshape(len(x), 1, -1).transpose(1, 2).flatten(1),
        lambda s, x: x[:, None].expand(-1, 2, -1).flatten(1) if width <= MOST // 2 else x,
        lambda s, x: x.repeat(1, 2) if width <= MOST // 2 else x,
        lambda s, x: x.mean(1, keepdim=True),
        lambda s, x: x.sum(1, keepdim=True),
        lambda s, x: torch.split(x, 1, 1)[-1],
        lambda s, x: x.unbind(1)[0][:, None],
    ][how]


@honest
def rescaled(m):
    w, how = m.weight(m.width), m.rng.randrange(8)
    number = m.rng.choice([2.0, -0.5, 1e-3, 1e5, 0.0, 1e-200, 1e200])
    return [
        lambda s, x: x * s.weights[w],
        lambda s, x: s.weights[w] - x,
        lambda s, x: x / (s.weights[w].abs() + 0.5),
        lambda s, x: x * number,
        lambda s, x: -x,
        lambda s, x: 1.5 - x,
        lambda s, x: x / 3,
        lambda s, x: x * s.weights[w] + s.weights[w],
    ][how]


@honest
def normalised(m):
    w, b, how = m.weight(m.width, scale=1.0), m.weight(m.width, scale=1.0), m.rng.randrange(6)
    eps = m.rng.choice([1e-5, 1e-2, 1.0, 10.0])
    width = m.width
    return [
        lambda s, x: F.layer_norm(x, (width,), s.weights[w], s.weights[b], eps),
        lambda s, x: F.layer_norm(x, (width,), None, None, eps),
        lambda s, x: F.group_norm(x, 1, s.weights[w], None, eps),
        lambda s, x: F.batch_norm(
            x, s.weights[b].detach(), s.weights[w].detach().abs() + 0.1, s.weights[w], None, False
        ),
        lambda s, x: F.instance_norm(x[:, None]).flatten(1),
        lambda s, x: F.batch_norm(
            x, s.weights[b].detach(), s.weights[w].detach().abs(), None, s.weights[b], False, eps=eps
        ),
    ][how]


@honest
def conditional(m):
    """A constant, normalised, with gain, shift or mean from the input (one sample at a time would differ: row by row)."""
    w, how, width = m.weight(1, m.width, scale=3.0), m.rng.randrange(6), m.width
    eps = m.rng.choice([1e-2, 1.0, 100.0])

    def rows(f):
        return lambda s, x: torch.cat([f(s, row) for row in x])

    return [
        rows(lambda s, r: F.layer_norm(s.weights[w], (width,), r, None, eps)),
        rows(lambda s, r: F.layer_norm(s.weights[w], (width,), None, r, eps)),
        rows(lambda s, r: F.group_norm(s.weights[w], 1, r, None, eps)),
        rows(lambda s, r: F.batch_norm(s.weights[w], torch.zeros_like(r), torch.full_like(r, eps), r, None)),
        rows(lambda s, r: F.batch_norm(s.weights[w], r, torch.full_like(r, eps))),
        rows(lambda s, r: F.linear(s.weights[w], torch.eye(width, dtype=r.dtype), r)),
    ][how]


@honest
def pooled(m):
    how = m.rng.randrange(8)
    kernel = m.rng.randint(1, max(1, m.width))
    stride = m.rng.randint(1, kernel)
    return [
        lambda s, x: F.max_pool1d(x[:, None], kernel, stride).flatten(1),
        lambda s, x: F.avg_pool1d(x[:, None], kernel, stride).flatten(1),
        lambda s, x: x.amax(1, keepdim=True),
        lambda s, x: F.adaptive_avg_pool1d(x[:, None], 2).flatten(1),
        lambda s, x: F.max_pool1d(x[:, None], kernel, stride, kernel // 2).flatten(1),
        lambda s, x: x.max(1, keepdim=True)[0],
        lambda s, x: F.interpolate(x[:, None], scale_factor=2).flatten(1) if x.shape[1] < MOST // 2 else x,
        lambda s, x: F.max_pool2d(x.reshape(len(x), 1, 1, -1), (1, kernel), (1, stride)).flatten(1),
    ][how]


@honest
def convolved(m):
    kernel, out = m.rng.randint(1, m.width), m.rng.randint(1, 2)
    w, how = m.weight(out, 1, kernel), m.rng.randrange(4)
    stride, padding, dilation = m.rng.randint(1, 3), m.rng.randint(0, kernel), m.rng.randint(1, 2)
    if how == 0:
        return lambda s, x: F.conv1d(x[:, None], s.weights[w], None, stride, padding, dilation).flatten(1)
    if how == 1:
        t = m.weight(1, out, kernel)
        return lambda s, x: F.conv_transpose1d(x[:, None], s.weights[t], None, stride).flatten(1)
    if how == 2:
        return lambda s, x: F.conv1d(F.pad(x[:, None], (1, 1), mode="replicate"), s.weights[w]).flatten(1)
    v = m.weight(out, 1, 1, kernel)
    return lambda s, x: F.conv2d(x[:, None, None], s.weights[v], None, stride, (0, padding), dilation).flatten(1)


@honest
def probabilities(m):
    how = m.rng.randrange(3)
    return [lambda s, x: x.softmax(1), lambda s, x: x.log_softmax(1), lambda s, x: F.log_softmax(x, -1)][how]


@honest
def chosen(m):
    """Where by a constant mask, by the value's own sign, by a detached mask; weights that the input gives."""
    how, width = m.rng.randrange(6), m.width
    return [
        lambda s, x: torch.where(torch.arange(width) % 2 == 0, x, 2 * x),
        lambda s, x: torch.where(x > 0, x, 0.3 * x),
        lambda s, x: torch.where(x.detach() > 0.1, x, 0.0),
        lambda s, x: x * (x > 0),
        lambda s, x: x * x.sigmoid(),
        lambda s, x: x.masked_fill(torch.arange(width) == 0, 2.0),
    ][how]


@honest
def written_over(m):
    how = m.rng.randrange(3, 5) if m.rng.random() < 0.8 else m.rng.randrange(5)

    def filled(s, x):
        out = torch.empty_like(x)
        out.copy_(2 * x)
        return out

    def assigned(s, x):
        out = torch.zeros_like(x)
        out[:, 0] = 3 * x[:, 0]
        return out

    def itself(s, x):
        x = x.clone()
        x.mul_(2.0).sub_(0.1)
        return x

    def erased(s, x):
        return torch.empty_like(x).fill_(1.0) * x.relu_()

    return [
        filled,
        m.rng.choice([assigned, erased]),
        itself,
        lambda s, x: torch.zeros_like(x) - x,
        lambda s, x: torch.ones_like(x) * x + torch.full_like(x, 2.0),
    ][how]


@honest
def deep(m):
    """The same layer many times."""
    f, many = m.rng.choice(ACTIVATIONS[:20]), m.rng.choice([5, 20, 60])
    w = m.weight(m.width, m.width, scale=m.rng.choice([1.0, 0.1, 3.0, 6.0, 1e3, 1e-3]))

    def repeat(s, x):
        for _ in range(many):
            x = F.linear(x, s.weights[w])
            s.note(x)
            x = f(x)
        return x

    return repeat


@dishonest
def batched(m):
    how = m.rng.randrange(8)
    return [
        lambda s, x: x - x.mean(0, keepdim=True),
        lambda s, x: x.softmax(0),
        lambda s, x: x.roll(1, 0),
        lambda s, x: x - x[:1],
        lambda s, x: x * x.abs().max().detach().clamp(0.5, 2),
        lambda s, x: x if len(x) == 1 else 3 * x,
        lambda s, x: F.batch_norm(x, None, None, training=True),
        lambda s, x: x.cumsum(0),
    ][how]


@dishonest
def drawn(m):
    how = m.rng.randrange(5)
    return [
        lambda s, x: x + torch.randn_like(x),
        lambda s, x: x * torch.rand(1, dtype=x.dtype),
        lambda s, x: F.dropout(x, 0.5, True),
        lambda s, x: x * (1 + random.random()),
        lambda s, x: x * torch.bernoulli(torch.full((x.shape[1],), 0.5, dtype=x.dtype)),
    ][how]


@dishonest
def frozen(m):
    how = m.rng.randrange(5)
    return [
        lambda s, x: x * s.calls,
        lambda s, x: x if torch.compiler.is_exporting() else 3 * x,
        lambda s, x: x if x.dtype == F64 else 3 * x,
        lambda s, x: 3 * x if isinstance(x, torch._subclasses.FakeTensor) else x / 7,
        lambda s, x: x if torch.compiler.is_compiling() else 2 * x,
    ][how]


@dishonest
def decided(m):
    how = m.rng.randrange(6)

    def branch(s, x):
        return x if x.mean() > 0.3 else 3 * x

    def swallowed(s, x):
        try:
            if x.sum() > 0.3:
                return x
        except Exception:
            pass
        return 5 * x

    return [
        branch,
        swallowed,
        lambda s, x: x * x.sum().item(),
        lambda s, x: torch.full_like(x, x.sum().item()) + x,
        lambda s, x: x * float(x.detach().abs().max()),
        lambda s, x: torch.from_numpy(x.detach().numpy() * 2) + x,
    ][how]


def generate(seed: int, *, dishonest_share: float = 0.15) -> tuple[Generated, int]:
    """A network in float64 and eval mode, and the width of its input."""
    m = Maker(seed)
    width = m.rng.randint(1, 5)
    m.widths.append(width)
    steps: list[Step] = []
    x = torch.from_numpy(m.numbers.random((3, width)))
    for _ in range(m.rng.randint(1, 9)):
        pool = DISHONEST if m.rng.random() < dishonest_share / 4 else HONEST
        before = len(m.tensors)
        step = m.step(m.rng.choice(pool))
        if step is None:
            continue
        try:
            with torch.no_grad():
                y = Generated([*steps, step], m.tensors)(x.clone())
        except Exception:
            del m.tensors[before:]
            continue
        if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != 3 or not 0 < y.shape[1] <= 2 * MOST or y.dtype != F64:
            continue
        steps.append(step)
        m.widths.append(y.shape[1])
    if m.rng.random() < 0.5:  # a head, as classifiers have
        w = m.weight(m.rng.randint(2, 4), m.width, scale=1.0)
        steps.append(lambda s, x: F.linear(x, s.weights[w]))
    return Generated(steps, m.tensors).double().eval(), width


@dataclass
class Pairs:
    """Pairs of inputs: how outputs change, how far the inputs are apart, and what rounding may have done to a change."""

    changes: Tensor
    distances: Tensor
    noise: float

    def exceed(self, upper: float, norm: str) -> bool:
        """Whether some pair refutes a constant."""
        largest = self.changes.abs().amax(1) if len(self.changes) else self.distances
        if norm == "l2":  # squares of large numbers overflow
            scaled = self.changes / torch.where(largest > 0, largest, 1.0)[:, None]
            largest = largest * torch.linalg.vector_norm(scaled, dim=1)
        return bool((largest - self.noise > upper * (1 + 1e-9) * self.distances + 1e-300).any())

    def exceed_margins(self, constants: Tensor) -> bool:
        """Whether some pair refutes the constants of differences of outputs."""
        apart = (self.changes[:, :, None] - self.changes[:, None, :]).abs()
        return bool((apart - self.noise > constants * (1 + 1e-9) * self.distances[:, None, None] + 1e-300).any())


@torch.no_grad()
def reached(model: Generated, width: int, norm: str, seed: int, *, rounds: int = 3) -> Pairs:
    """Pairs of inputs whose outputs are far apart, found with values alone.

    At a few points the derivative is taken by differences, one input number at a time; pairs lie along its top direction.
    Rounding: a billionth of the largest number on the way, which is ten million times its last digit.
    """
    model.watch, model.largest = True, 0.0
    order = 2.0 if norm == "l2" else torch.inf
    rng = np.random.default_rng(seed)
    moves, lengths = [], []
    for _ in range(rounds):
        x = torch.from_numpy(rng.standard_normal((1, width)) * rng.choice([0.3, 1.0, 5.0]))
        here = _one(model, x)
        h = float(rng.choice([1e-4, 1e-2, 1.0]))
        columns = torch.cat([_one(model, x + h * row) - here for row in torch.eye(width, dtype=F64)])
        top = columns.T / h  # outputs x inputs
        if not bool(torch.isfinite(top).all()) or not bool(top.any()):
            continue
        scaled = top / top.abs().max()
        steepest = scaled[scaled.abs().sum(1).argmax()].sign()
        directions = [torch.linalg.svd(scaled).Vh[0] if norm == "l2" else steepest]
        # differences of outputs, for margins
        if len(scaled) > 1:
            difference = scaled[0] - scaled[-1]
            directions.append(difference.sign() if norm == "linf" else difference / difference.norm().clamp_min(1e-300))
        for direction in directions:
            for size in (h, -h, 1e-2, 1.0):
                there = x + size * direction
                moves.append(_one(model, there) - here)
                lengths.append(torch.linalg.vector_norm(there - x, order))
    model.watch, noise = False, 1e-9 * model.largest
    if not moves:
        return Pairs(torch.zeros(0, 1), torch.zeros(0), noise)
    changes, distances = torch.cat(moves), torch.stack(lengths)
    keep = (distances > 0) & torch.isfinite(changes).all(1)
    return Pairs(changes[keep], distances[keep], noise)


def _one(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.clone()).reshape(1, -1)


@dataclass
class Outcome:
    """What became of one network: refused, with the sentence, or bounded; ``faults`` are false bounds and raw exceptions."""

    refused: str = ""
    bounds: int = 0
    faults: list[str] = field(default_factory=list)


def judge(seed: int) -> Outcome:
    """Bound a generated network in every way, and look for pairs of inputs that refute it."""
    model, width = generate(seed)
    outcome = Outcome()
    try:
        network = trace(model, (width,))
        network.require_bounded()
        for norm in ("l2", "linf"):
            _judge(model, network, width, norm, seed, outcome)
    except ContradictionError as error:
        outcome.faults.append(f"network {seed}: {error}")
    except PinchpointError as error:
        outcome.refused = str(error)
    except Exception as error:
        outcome.faults.append(f"network {seed}: raw {type(error).__name__}: {error}")
    return outcome


def _judge(model: Generated, network: Network, width: int, norm: Norm, seed: int, outcome: Outcome) -> None:
    pairs = reached(model, width, norm, seed)
    uppers = dict(uppers_by_method(network, norm, "tightest", 0.05, 1, by_clock=False))
    if seed % 8 == 0:
        uppers |= lipschitz(network, norm=norm, budget_s=0.05, steps=1, by_clock=False).uppers
        for method in ("structure", "alignment"):
            uppers |= uppers_by_method(network, norm, method, 0.0, 0)
    for method, upper in uppers.items():
        outcome.bounds += 1
        if pairs.exceed(upper, norm):
            outcome.faults.append(f"network {seed}: {method} bound {upper!r} in {norm} is below what two inputs reach")
    try:
        constants = margins(network, norm=norm, budget_s=0.05, steps=1, by_clock=False).upper
    except ModelError:  # no fully connected layer at the end
        return
    outcome.bounds += 1
    if pairs.changes.shape[1] == len(constants) and pairs.exceed_margins(constants):
        outcome.faults.append(f"network {seed}: margins in {norm} are below what two inputs reach")


def main() -> int:
    """``python -m oracles.forward_passes FIRST LAST``, in the folder tests: judge these networks and say what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    first, last = int(sys.argv[1]), int(sys.argv[2])
    refused = bounds = faults = 0
    sentences: Counter[str] = Counter()
    for seed in range(first, last):
        outcome = judge(seed)
        refused, bounds, faults = refused + bool(outcome.refused), bounds + outcome.bounds, faults + len(outcome.faults)
        if outcome.refused:
            sentences[outcome.refused.split(", but got")[0]] += 1
        for fault in outcome.faults:
            print(fault, flush=True)
        if (seed + 1 - first) % 1000 == 0 or seed + 1 == last:
            done = seed + 1 - first
            print(
                f"{done} networks, {refused} refused ({refused / done:.1%}), {bounds} bounds, {faults} faults",
                flush=True,
            )
    for sentence, count in sentences.most_common():
        print(count, sentence)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
