"""Odd networks, inputs and labels, drawn from a seed: what people hand over that no textbook shows.

A case has one oddity or a few; most of what surrounds them is ordinary, so that calls get far enough to meet them.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat

SHAPES = ((6,), (1, 4, 4), (3, 4, 4), (5, 3))


class ModelOutput(OrderedDict):
    """As Hugging Face's."""

    @property
    def logits(self):
        return self["logits"]


class Refusal(Exception):
    """An error of somebody's own kind."""


class WrongBackward(torch.autograd.Function):
    """Its gradient is another function's."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return 1e3 * gradient.flip(-1)


class FailingBackward(torch.autograd.Function):
    """It has none."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise Refusal("no gradient today")


class Module(nn.Module):
    """Steps one after another: functions of the module and its input."""

    def __init__(self, steps, shape, classes):
        super().__init__()
        self.steps, self.calls = steps, 0
        size = int(np.prod(shape))
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, classes))
        self.norm, self.statistics = nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False)
        self.attention, self.recurrent = nn.MultiheadAttention(8, 2), nn.GRU(8, 8)

    def forward(self, x):
        for step in self.steps:
            x = step(self, x)
        return x


def _through(inner: Callable[[Module, Tensor], Tensor]) -> Callable[[Module, Tensor], Tensor]:
    """A body with something between its layers."""
    return lambda m, x: m.body[3](inner(m, m.body[2](m.body[1](m.body[0](x)))))


def _raise(error: Exception) -> Callable[[Module, Any], Any]:
    def step(m, x):
        raise error

    return step


def _count(m, h):
    m.calls += 1
    return h * m.calls


def _learn(m, h):
    with torch.no_grad():
        m.body[3].bias += 0.1
    return h


def _train(m, h):
    m.train()
    return h


def _first_pixel(m, x):
    x[..., 0] = 0.5
    return x


def _only(sizes: Callable[[int], bool]) -> Callable[[Module, Tensor], Tensor]:
    def step(m, x):
        if not sizes(len(x)):
            raise ValueError(f"not for batches of {len(x)}")
        return x

    return step


BEFORE: dict[str, Callable[[Module, Tensor], Any]] = {
    "subtracts in place": lambda m, x: x.sub_(0.3).div_(0.4),
    "ReLU in place": lambda m, x: nn.functional.relu(x, inplace=True),
    "clamps a view in place": lambda m, x: (x[:, 0].clamp_(0.2, 0.8), x)[1],
    "sets a pixel": _first_pixel,
    "transposes in place": lambda m, x: x.transpose_(0, 1).transpose_(0, 1),
    "detaches": lambda m, x: x.detach(),
    "rounds": lambda m, x: (x * 8).round() / 8,
    "NumPy": lambda m, x: torch.from_numpy(x.detach().cpu().numpy()),
    "item": lambda m, x: x + x.sum().item(),
    "branches": lambda m, x: x if x.mean() > 0.5 else 1 - x,
    "another backward": lambda m, x: WrongBackward.apply(x),
    "a backward that fails": lambda m, x: FailingBackward.apply(x),
    "noise": lambda m, x: x + 0.1 * torch.randn_like(x),
    "dropout": lambda m, x: nn.functional.dropout(x, 0.5, training=True),
    "centres over the batch": lambda m, x: x - x.mean(0),
    "no batch of one": _only(lambda n: n > 1),
    "batches of one": _only(lambda n: n == 1),
    "batches of at most two": _only(lambda n: n <= 2),
    "whole batches of four": lambda m, x: x.reshape(4, -1),
    "casts to float32": lambda m, x: x.float(),
    "casts to float64": lambda m, x: x.double(),
    "casts to bfloat16": lambda m, x: x.bfloat16(),
    "whole numbers": lambda m, x: (x * 255).to(torch.uint8).to(x.dtype),
    "sparse": lambda m, x: x.flatten(1).to_sparse(),
    "a division by zero": lambda m, x: x / (x - x),
    "a root of zero": lambda m, x: (x - x).sqrt() + x,
    "asks for two inputs": lambda m, x, mask: x * mask,
    "meta": lambda m, x: x.to("meta"),
    **{
        f"raises {type(error).__name__}": _raise(error)
        for error in (
            TypeError("not like this"),
            KeyError("mask"),
            AttributeError("no such thing"),
            AssertionError(),
            IndexError("out of range"),
            ZeroDivisionError("division by zero"),
            NotImplementedError(),
            StopIteration(),
            Refusal("because\nof reasons"),
            RuntimeError(),
        )
    },
}

BODIES: dict[str, Callable[[Module, Tensor], Any]] = {
    "a batch norm": _through(lambda m, h: m.norm(h)),
    "batch statistics": _through(lambda m, h: m.statistics(h)),
    "attention over the batch": _through(lambda m, h: m.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]),
    "recurrence over the batch": _through(lambda m, h: m.recurrent(h)[0]),
    "a counter": _through(_count),
    "learns while it is asked": _through(_learn),
    "goes into training mode": _through(_train),
    "ReLU in place between layers": _through(lambda m, h: h.relu_()),
    "no gradient": lambda m, x: m.body(x).detach(),
    "huge weights": lambda m, x: m.body(x) * 1e30,
    "tiny weights": lambda m, x: m.body(x) * 1e-38,
    "a constant": lambda m, x: torch.ones(len(x), m.body[3].out_features),
    "a parameter": lambda m, x: m.body[3].bias.expand(len(x), -1),
    "its input": lambda m, x: x,
    "Fourier": _through(lambda m, h: torch.fft.fft(h).real),
    "sorts": _through(lambda m, h: h.sort(0)[0]),
    "nothing of its weights": lambda m, x: x.flatten(1),
}

AFTER: dict[str, Callable[[Module, Any], Any]] = {
    "a tuple": lambda m, z: (z, z),
    "an empty tuple": lambda m, z: (),
    "a list": lambda m, z: [z],
    "a dict": lambda m, z: {"logits": z, "hidden": z},
    "a ModelOutput": lambda m, z: ModelOutput(logits=z),
    "nothing": lambda m, z: None,
    "text": lambda m, z: "cat",
    "an array": lambda m, z: z.detach().numpy(),
    "a vector": lambda m, z: z[:, 0],
    "one column": lambda m, z: z[:, :1],
    "no columns": lambda m, z: z[:, :0],
    "a squeeze": lambda m, z: z.squeeze(),
    "a number": lambda m, z: z.sum(),
    "one more axis": lambda m, z: z[..., None],
    "a row too few": lambda m, z: z[1:],
    "rows twice": lambda m, z: torch.cat([z, z]),
    "classes first": lambda m, z: z.T,
    "integers": lambda m, z: z.argmax(1, keepdim=True).expand(-1, 3),
    "truths": lambda m, z: z > 0,
    "complex numbers": lambda m, z: z.to(torch.complex64),
    "a sparse matrix": lambda m, z: z.to_sparse(),
    "NaN": lambda m, z: z * torch.nan,
    "infinity": lambda m, z: z + torch.inf,
    "minus infinity in one column": lambda m, z: torch.cat([z[:, :-1], z[:, -1:] - torch.inf], 1),
    "the logarithm of a softmax": lambda m, z: z.log_softmax(1),
    "a softmax": lambda m, z: z.softmax(1),
    "zeros": lambda m, z: z * 0,
    "float64": lambda m, z: z.double(),
    "float16": lambda m, z: z.half(),
    "bfloat16": lambda m, z: z.bfloat16(),
    "a division in place": lambda m, z: z.div_(3),
    "as many classes as samples": lambda m, z: z[:, :1].expand(-1, len(z)),
    "other classes at other times": lambda m, z: z[:, : 2 + len(z) % 2],
    "expanded": lambda m, z: z[:, :1].expand(-1, 3),
}

INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bytes": lambda x: (x * 255).to(torch.uint8),
    "integers": lambda x: x.long(),
    "truths": lambda x: x > 0.5,
    "complex": lambda x: x.to(torch.complex64),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "no samples": lambda x: x[:0],
    "one sample": lambda x: x[:1],
    "two samples": lambda x: x[:2],
    "one sample without a batch": lambda x: x[0],
    "no batch": lambda x: x.flatten(),
    "no features": lambda x: x.flatten(1)[:, :0],
    "not contiguous": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "with a history": lambda x: x.clone().requires_grad_() * 1.0,
    "a leaf": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(x.clone()),
    "NaN": lambda x: torch.where(x > 0.9, torch.nan, x),
    "just above one": lambda x: torch.where(x > 0.9, 1.0000002, x),
    "normalised": lambda x: (x - 0.5) / 0.2,
    "all zero": lambda x: x * 0,
    "all one": lambda x: x * 0 + 1,
    "all alike": lambda x: x[:1].repeat(len(x), *(1,) * (x.ndim - 1)),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "another shape": lambda x: torch.rand(len(x), 7),
}

LABELS: dict[str, Callable[[Tensor], Any]] = {
    "int32": lambda y: y.int(),
    "int16": lambda y: y.short(),
    "bytes": lambda y: y.to(torch.uint8),
    "truths": lambda y: y > 0,
    "floats": lambda y: y.float(),
    "fractions": lambda y: y + 0.5,
    "an array": lambda y: y.numpy(),
    "a list": lambda y: y.tolist(),
    "one class": lambda y: y * 0,
    "one-hot": lambda y: nn.functional.one_hot(y, 10),
    "a column": lambda y: y[:, None],
    "too few": lambda y: y[1:],
    "none": lambda y: y[:0],
    "too large": lambda y: y + 100,
    "negative": lambda y: y - 1,
    "text": lambda y: ["cat"] * len(y),
    "nothing": lambda y: None,
    "a number": lambda y: 1,
    "complex": lambda y: y.to(torch.complex64),
}

MODELS: dict[str, Callable[[Module], Any]] = {
    "a function": lambda m: m.forward,
    "a class": lambda m: Module,
    "nothing": lambda m: None,
    "float64 weights": lambda m: m.double(),
    "bfloat16 weights": lambda m: m.bfloat16(),
    "float16 weights": lambda m: m.half(),
    "frozen": lambda m: m.requires_grad_(False),
    "training": lambda m: m.train(),
    "no weights": lambda m: m.to("meta"),
    "NaN in its weights": lambda m: (nn.init.constant_(m.body[1].weight, torch.nan), m)[1],
    "zero weights": lambda m: (nn.init.zeros_(m.body[1].weight), m)[1],
    "an empty list of layers": lambda m: nn.Sequential(),
    "no forward pass": lambda m: nn.Module(),
}

THREATS: dict[str, Callable[[int], Any]] = {
    "l2": lambda size: Threat("l2", 0.2),
    "l1": lambda size: Threat("l1", 0.5),
    "no budget": lambda size: Threat("linf", 0.0),
    "the whole box": lambda size: Threat("linf", 1.0),
    "beyond the box": lambda size: Threat("linf", 1.5),
    "no box": lambda size: Threat("l2", 3.0, box=None),
    "text": lambda size: "linf:0.1",
    "nothing": lambda size: None,
}


@dataclass(frozen=True)
class Case:
    """A model, samples and a threat, and the names of what is odd about them."""

    oddities: tuple[str, ...]
    model: Any
    x: Any
    y: Any
    threat: Any

    def __str__(self) -> str:
        return "; ".join(self.oddities) or "nothing odd"


def draw(seed: int, shape: tuple[int, ...] | None = None, classes: int | None = None) -> Case:
    """The case of this seed; of a shape and a number of classes where they are asked for."""
    drawn = random.Random(seed)
    torch.manual_seed(seed)
    shape, classes = shape or drawn.choice(SHAPES), classes or drawn.choice((2, 3, 4, 10))
    samples = drawn.choice((3, 4, 5, 9))
    names: list[str] = []

    def odd(kind: str, table: dict[str, Any], chance: float) -> Any:
        """One of the table, now and then."""
        if drawn.random() >= chance:
            return None
        name = drawn.choice(sorted(table))
        names.append(f"{kind}: {name}")
        return table[name]

    before, body, after = odd("before", BEFORE, 0.35), odd("body", BODIES, 0.3), odd("after", AFTER, 0.35)
    steps = [step for step in (before, body or (lambda m, x: m.body(x)), after) if step is not None]
    model = Module(steps, shape, classes).eval()
    x, y = torch.rand(samples, *shape), torch.randint(classes, (samples,))
    wrapped, inputs = odd("model", MODELS, 0.15), odd("inputs", INPUTS, 0.3)
    labels, threat = odd("labels", LABELS, 0.3), odd("threat", THREATS, 0.4)
    if inputs is not None and labels is None and isinstance(given := inputs(x), Tensor) and given.ndim:
        y = y[: len(given)]  # as many, where they are not what is odd
    return Case(
        tuple(names),
        model if wrapped is None else wrapped(model),
        x if inputs is None else inputs(x),
        y if labels is None else labels(y),
        Threat("linf", 0.1) if threat is None else threat(x[0].numel()),
    )
