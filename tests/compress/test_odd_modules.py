"""Odd modules through pruning and factorising: what comes back is what was done by hand, or one sentence; nothing else.

A module is an ordinary body with a way of moving channels, an activation and an oddity, drawn from a seed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pinchpoint.compress import (
    L1,
    AlignmentPenalty,
    ConstantFrobenius,
    FrobeniusBall,
    GroupLasso,
    Hoyer,
    NuclearNorm,
    SpectralBall,
    SpreadControl,
    factorize,
    plan,
)
from pinchpoint.compress.prune import prune
from pinchpoint.compress.quantize import quantize
from pinchpoint.compress.rescale import rescale
from pinchpoint.errors import PinchpointError
from pinchpoint.measure.weights import computed_tensors

ACTIVATIONS = {"relu": F.relu, "leaky": F.leaky_relu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "softplus": F.softplus}
ZERO_AT_ZERO = {"relu", "leaky", "gelu"}


def shuffled(z):
    return z.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


MOVES = {
    "nothing": lambda m, z: z,
    "shuffle": lambda m, z: shuffled(z),
    "flip": lambda m, z: z.flip(1),
    "roll by two": lambda m, z: z.roll(2, 1),
    "roll by half": lambda m, z: z.roll(4, 1),
    "two swapped": lambda m, z: z[:, [2, 1, 0, 3, 4, 5, 6, 7]],
    "halves swapped": lambda m, z: torch.cat([z[:, 4:], z[:, :4]], 1),
    "chunks swapped": lambda m, z: torch.cat(z.chunk(4, 1)[::-1], 1),
    "own and mirrored": lambda m, z: z + z.flip(1),
    "gated": lambda m, z: z * torch.sigmoid(z.roll(2, 1)),
    "averages": lambda m, z: z + z.mean(1, keepdim=True),
    "cumsum": lambda m, z: z.cumsum(1),
    "sorted": lambda m, z: z.sort(1).values,
    "softmax": lambda m, z: z.softmax(1),
    "a matrix": lambda m, z: torch.einsum("oc,nc...->no...", torch.ones(8, 8, dtype=z.dtype).tril(), z),
    "scatter": lambda m, z: torch.zeros_like(z).index_copy(1, torch.arange(7, -1, -1), z),
    "written": lambda m, z: copied_in_parts(z),
    "dead half": lambda m, z: z * (torch.arange(8) < 4).to(z.dtype).reshape(-1, *[1] * (z.ndim - 2)),
    "unbound": lambda m, z: torch.stack(z.unbind(1)[::-1], 1),
    "repeated": lambda m, z: z.repeat(1, 2, *[1] * (z.ndim - 2))[:, 4:12],
    "in place": lambda m, z: z.mul_(2.0),
    "detached": lambda m, z: z.detach() + z,
}


def copied_in_parts(z):
    out = torch.zeros_like(z)
    out[:, 1:] = z[:, :-1]
    out[:, 0] = z[:, -1]
    return out


class Body(nn.Module):
    """Two layers of eight units or filters, something between them, and a head."""

    def __init__(self, activation, move, pixels, norm):
        super().__init__()
        layer = (lambda i, o: nn.Conv2d(i, o, 3, padding=1)) if pixels else nn.Linear
        kind = (nn.BatchNorm2d if pixels else nn.BatchNorm1d) if norm else nn.Identity
        self.first, self.norm, self.second, self.head = layer(3, 8), kind(8), layer(8, 8), nn.Linear(8, 4)
        self.activation, self.move, self.calls, self.pixels = activation, move, 0, pixels
        self.register_buffer("counted", torch.zeros(()))

    def features(self, x):
        return self.move(self, self.activation(self.norm(self.first(x))))

    def forward(self, x):
        z = self.activation(self.second(self.features(x)))
        return self.head(z.mean((2, 3)) if self.pixels else z)


def replaced(function):
    """An oddity in the forward pass: ``function(model, x, answer)``."""

    def change(model):
        kind = type(model)
        odd = type("Odd", (kind,), {"forward": lambda self, x: function(self, x, lambda y: kind.forward(self, y))})
        model.__class__ = odd
        return model

    return change


def count(m, x, answer):
    m.calls += 1
    return answer(x) * m.calls


def remember(m, x, answer):
    m.counted += 1.0
    return answer(x) + m.counted


def hooked(model):
    model.first.register_forward_hook(lambda module, args, output: output * 2)
    return model


def other_hooked(model):
    model.second.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))
    return model


def filled(value):
    def change(model):
        with torch.no_grad():
            model.first.weight[(0,) * model.first.weight.ndim] = value
        return model

    return change


def zeros(model):
    with torch.no_grad():
        model.second.weight.zero_()
    return model


def tied(model):
    model.second.weight = model.other.weight = nn.Parameter(torch.rand_like(model.second.weight))
    return model


def with_other(function):
    """A third layer of the second one's shape."""

    def change(model):
        model.other = copy.deepcopy(model.second)
        return function(model)

    return change


def set_layer(name, make):
    def change(model):
        setattr(model, name, make(model))
        return model

    return change


def lazy(model):
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def as_conv(make, width=8):
    return set_layer("second", lambda m: make() if m.pixels else nn.Linear(width, width))


ODDITIES = {
    "none": lambda m: m,
    "training": lambda m: m.train(),
    "frozen": lambda m: m.requires_grad_(False),
    "half frozen": lambda m: (m.first.requires_grad_(False), m)[1],
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float64": lambda m: m.double(),
    "complex": lambda m: m.to(torch.complex64),
    "meta": lambda m: m.to("meta"),
    "lazy": lazy,
    "quantised": quantised,
    "tied": with_other(lambda m: replaced(lambda m, x, answer: answer(x) + m.head.weight.sum())(tied(m))),
    "other tied": with_other(lambda m: replaced(lambda m, x, answer: m.other(m.features(x)))(tied(m))),
    "weight norm": lambda m: (parametrizations.weight_norm(m.second), m)[1],
    "spectral norm": lambda m: (parametrizations.spectral_norm(m.first), m)[1],
    "old weight norm": lambda m: (nn.utils.weight_norm(m.second), m)[1],
    "pruning mask": lambda m: (nn.utils.prune.l1_unstructured(m.first, "weight", 3), m)[1],
    "orthogonal": lambda m: (parametrizations.orthogonal(m.head), m)[1],
    "hook": hooked,
    "hook that moves": other_hooked,
    "nan": filled(math.nan),
    "infinite": filled(math.inf),
    "huge": filled(1e30),
    "zeros": zeros,
    "no rows": set_layer("other", lambda m: nn.Linear(20, 0)),
    "no columns": set_layer("other", lambda m: nn.Linear(0, 20)),
    "no head rows": set_layer("head", lambda m: nn.Linear(8, 0)),
    "transposed": as_conv(lambda: nn.ConvTranspose2d(8, 8, 2)),
    "grouped": as_conv(lambda: nn.Conv2d(8, 8, 3, groups=2)),
    "a filter a channel": as_conv(lambda: nn.Conv2d(8, 8, 3, groups=8)),
    "transposed, a filter a channel": as_conv(lambda: nn.ConvTranspose2d(8, 8, 2, groups=8)),
    "twice": replaced(lambda m, x, answer: m.head(m.second(m.second(m.features(x))).flatten(2).mean(2))
                      if m.pixels else m.head(m.second(m.second(m.features(x))))),
    "residual": replaced(lambda m, x, answer: m.head((m.features(x) + m.second(m.features(x))).flatten(2).mean(2))
                         if m.pixels else m.head(m.features(x) + m.second(m.features(x)))),
    "layer norm": set_layer("norm", lambda m: nn.GroupNorm(1, 8)),
    "instance norm": set_layer("norm", lambda m: nn.InstanceNorm2d(8, affine=True) if m.pixels else nn.Identity()),
    "batch statistics": set_layer("norm", lambda m: nn.BatchNorm2d(8, track_running_stats=False) if m.pixels
                                  else nn.BatchNorm1d(8, track_running_stats=False)),
    "prelu": set_layer("norm", lambda m: nn.PReLU(8)),
    "dict": replaced(lambda m, x, answer: {"logits": answer(x)}),
    "two": replaced(lambda m, x, answer: (answer(x), m.features(x))),
    "list": replaced(lambda m, x, answer: [answer(x)]),
    "nothing": replaced(lambda m, x, answer: None),
    "a number": replaced(lambda m, x, answer: answer(x).sum()),
    "text": replaced(lambda m, x, answer: "text"),
    "in place on the input": replaced(lambda m, x, answer: answer(x.sub_(0.5).div_(0.25))),
    "branch": replaced(lambda m, x, answer: answer(x) if x.mean() > 0.7 else 2 * answer(x)),
    "item": replaced(lambda m, x, answer: answer(x) * x.max().item()),
    "numpy": replaced(lambda m, x, answer: answer(torch.from_numpy(x.detach().numpy() * 2))),
    "noise": replaced(lambda m, x, answer: answer(x + 0.1 * torch.rand_like(x))),
    "dropout": replaced(lambda m, x, answer: F.dropout(answer(x), 0.5, True)),
    "counter": replaced(count),
    "remembering": replaced(remember),
    "the batch": replaced(lambda m, x, answer: answer(x - x.mean(0))),
    "no grad": replaced(lambda m, x, answer: torch.no_grad()(answer)(x)),
    "detour": replaced(lambda m, x, answer: answer(x.detach())),
    "failing": replaced(lambda m, x, answer: 1 / 0),
    "read elsewhere": replaced(lambda m, x, answer: answer(x) + m.first.weight.sum()),
    "functional": replaced(lambda m, x, answer: answer(x) + F.linear(m.features(x).flatten(2).mean(2) if m.pixels
                                                                     else m.features(x), m.head.weight)),
    "only activations": lambda m: nn.Sequential(nn.ReLU()),
    "scripted": lambda m: torch.jit.script(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))),
    "the whole model": lambda m: nn.Linear(3, 4),
    "one layer": lambda m: nn.Sequential(nn.Linear(3, 4)),
}  # fmt: skip
SHAPES = {"right": None, "wrong": (5,), "empty": (), "zero": (0,), "negative": (-1,)}
WAYS = [
    {"unit": unit, "allocation": allocation, "criterion": criterion, "remove": remove}
    for unit, allocation, criterion in itertools.product(
        ("filters", "rows", "heads", "singular values", "entries"), ("residual", "uniform", "global"), ("l1", "l2")
    )
    for remove in ((True, False) if unit in ("filters", "heads") else (False,))
]


def draw(oddity, seed):
    """A module, its input shape, whether zero stays zero in it, and what was drawn."""
    chance = random.Random(f"{oddity} {seed}")
    torch.manual_seed(seed)
    activation, move = chance.choice(list(ACTIVATIONS)), chance.choice(list(MOVES)) if seed else "nothing"
    pixels, norm = chance.random() < 0.6, chance.random() < 0.5
    model = Body(ACTIVATIONS[activation], MOVES[move], pixels, norm).eval()
    if norm:
        nn.init.normal_(model.norm.bias), nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    shape = "right" if chance.random() < 0.95 else chance.choice(list(SHAPES))
    size = (3, 6, 6) if pixels else (3,)
    model = ODDITIES[oddity](model)
    return model, size if shape == "right" else SHAPES[shape], activation in ZERO_AT_ZERO, (activation, move, shape)


def state(model):
    tensors = [tensor for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)]
    readable = [tensor for tensor in tensors if not nn.parameter.is_lazy(tensor) and tensor.device.type != "meta"]
    return [tensor.clone() for tensor in readable], [module.training for module in model.modules()]


def unchanged(before, model):
    now = state(model)
    return now[1] == before[1] and all(
        torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) if a.is_floating_point() else True
        for a, b in zip(before[0], now[0], strict=True)
    )


def copied(model):
    """Also where a hook has left a computed weight."""
    return copy.deepcopy(model, computed_tensors(model))


def answer(model, shape):
    """On four inputs, in float64; None where it does not run so."""
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        out = copied(model).double().eval()(x)
    out = list(out.values()) if isinstance(out, dict) else list(out) if isinstance(out, tuple | list) else [out]
    return torch.cat([part.flatten() for part in out])


def by_hand(model, masked, report):
    """The model whose named rows, with their biases and norms, are zero."""
    model = copied(model)
    layers = dict(model.named_modules())
    for group in report.layers:
        for name in group.members:
            dim = int(isinstance(layers[name], nn.ConvTranspose2d) and layers[name].groups == 1)
            rows = masked.get_submodule(name).weight.transpose(0, dim).flatten(1)
            dead = (rows == 0).all(1)
            if (bias := masked.get_submodule(name).bias) is not None:
                dead &= bias == 0
            with torch.no_grad():
                layers[name].weight.transpose(0, dim)[dead] = 0.0
                if layers[name].bias is not None:
                    layers[name].bias[dead] = 0.0
                if name == "first" and isinstance(norm := layers["norm"], nn.modules.batchnorm._BatchNorm):
                    gone = (masked.norm.weight == 0) & (masked.norm.bias == 0)  # none where it is called twice
                    assert not (gone & ~dead).any()
                    norm.weight[gone] = norm.bias[gone] = 0.0
    return model


def close(one, other):
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max()) if other.numel() else 1.0), equal_nan=True
    )


def check_pruned(model, shape, pruned, way, keeps_zero):
    report, small = pruned.report, pruned.model
    assert all(1 <= layer.kept <= layer.units for layer in report.layers)
    if way["unit"] == "entries":
        for layer in report.layers:
            old, new = model.get_submodule(layer.name).weight, small.get_submodule(layer.name).weight
            kept = torch.zeros(old.numel(), dtype=torch.bool)
            kept[old.detach().flatten().abs().float().argsort(descending=True, stable=True)[: layer.kept]] = True
            assert torch.equal(torch.where(kept.reshape(old.shape), old, 0.0), new)
    elif way["unit"] == "singular values":
        for layer in report.layers:
            old = model.get_submodule(layer.name).weight.detach().double().flatten(1).numpy()
            u, sigma, v = np.linalg.svd(old, full_matrices=False)
            k = layer.kept
            new = small.get_submodule(layer.name).weight.detach().double().flatten(1).numpy()
            coarse = 1e-2 if next(model.parameters()).dtype in (torch.half, torch.bfloat16) else 1e-4
            np.testing.assert_allclose(new, (u[:, :k] * sigma[:k]) @ v[:k], atol=coarse * max(1.0, sigma[0]))
    elif way["remove"] is False and keeps_zero:
        assert close(answer(small, shape), answer(by_hand(model, small, report), shape))
    elif way["remove"]:
        masked = prune(
            model, 0.4, input_shape=shape, **{**way, "remove": False}, keep=[skip.name for skip in report.left]
        )
        assert [layer.name for layer in masked.report.layers] == [layer.name for layer in report.layers]
        assert close(answer(small, shape), answer(masked.model, shape))


def check_factorised(model, shape, seed):
    how = [{"rank": 2}, {"energy": 0.6}, {"residual": 0.5}][seed % 3]
    ranks = plan(model, **how, include_head=True, input_shape=shape).ranks
    small, hand = factorize(model, ranks=ranks), copied(model)
    for name, rank in ranks.items():
        weight = hand.get_submodule(name).weight
        u, sigma, v = np.linalg.svd(weight.detach().double().flatten(1).numpy(), full_matrices=False)
        with torch.no_grad():
            weight.copy_(torch.from_numpy((u[:, :rank] * sigma[:rank]) @ v[:rank]).reshape(weight.shape))
        rounding = max(20 * torch.finfo(weight.dtype).eps, 1e-10)
        assert (small.get_submodule(name).weight.double() - weight.double()).norm() <= rounding * weight.double().norm()
    if max(float(parameter.abs().max()) for parameter in model.parameters() if parameter.numel()) > 1e10:
        return  # two factors in float32 keep the matrix, not each of its small entries beside a huge one
    reference = answer(hand, shape)
    coarse = 0.1 if weight.dtype in (torch.half, torch.bfloat16) else 1e-4
    largest = float(reference.abs().max()) if reference.numel() else 0.0
    assert torch.allclose(answer(small, shape), reference, rtol=0, atol=coarse * max(1.0, largest))


def look(oddity, seed, ways):
    """How many calls gave a result."""
    model, shape, keeps_zero, drawn = draw(oddity, seed)
    before, results, sentences = state(model), 0, []
    for way in ways:
        try:
            pruned = prune(model, 0.4, input_shape=shape, **way)
        except PinchpointError as error:
            sentences.append(str(error))
        else:
            check_pruned(model, shape, pruned, way, keeps_zero)
            results += 1
        assert unchanged(before, model), (oddity, seed, drawn, way)
    try:
        check_factorised(model, shape, seed)
        results += 1
    except PinchpointError as error:
        sentences.append(str(error))
    assert unchanged(before, model), (oddity, seed, drawn)
    assert not any("\n" in sentence for sentence in sentences), (oddity, seed, drawn)
    return results


@pytest.mark.parametrize("oddity", ODDITIES)
def test_some_odd_modules_are_made_smaller_as_by_hand_or_refused(oddity):
    for seed in range(2):
        ways = random.Random(f"{oddity} {seed}").sample(WAYS, 3)
        results = look(oddity, seed, ways)
        if oddity == "none" and not seed:
            assert results


RESHAPED = {
    "quantize": lambda m: quantize(m, 4),
    "rescale": lambda m: rescale(m, 2.0),
}
STEPS = {
    "constant norms": lambda m: ConstantFrobenius(m)(m),
    "Frobenius ball": lambda m: FrobeniusBall(m, 0.5)(m),
    "spectral ball": lambda m: SpectralBall(m, 0.5)(m),
} | {
    kind.__name__: lambda m, kind=kind: kind(0.1)(m)
    for kind in (L1, Hoyer, NuclearNorm, GroupLasso, SpreadControl, AlignmentPenalty)
}  # fmt: skip


@pytest.mark.parametrize("oddity", [oddity for oddity in ODDITIES if oddity != "meta"])
def test_what_trains_and_coarsens_takes_odd_modules_or_refuses_them(oddity):
    for name, call in (RESHAPED | STEPS).items():
        model, _, _, _ = draw(oddity, 1)
        before = state(model)
        with contextlib.suppress(PinchpointError):  # anything else fails
            value = call(model)
            if isinstance(value, torch.Tensor) and oddity not in ("nan", "infinite"):
                assert bool(torch.isfinite(value))
        assert name in STEPS or unchanged(before, model)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("pixels", [True, False])
def test_masks_and_removal_follow_every_move(move, pixels):
    torch.manual_seed(0)
    model, shape = Body(F.relu, MOVES[move], pixels, True).eval(), (3, 6, 6) if pixels else (3,)
    nn.init.normal_(model.norm.bias)
    for remove in (False, True):
        way = {"unit": "filters", "allocation": "uniform", "criterion": "l2", "remove": remove}
        check_pruned(model, shape, prune(model, 0.4, input_shape=shape, **way), way, True)


@pytest.mark.slow
@pytest.mark.parametrize("oddity", ODDITIES)
def test_many_odd_modules_are_made_smaller_as_by_hand_or_refused(oddity):
    for seed in range(2, 8):
        look(oddity, seed, random.Random(f"{oddity} {seed}").sample(WAYS, 12))
