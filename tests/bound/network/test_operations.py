"""What is claimed of each operation, against the operation itself: difference quotients, slopes on a grid, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oracles.as_user import refused
from oracles.networks import ORDER
from pinchpoint.bound import trace
from pinchpoint.bound.methods.product import items_of, propagate
from pinchpoint.bound.network.operations import Slope, Unbounded
from pinchpoint.errors import ModelError

NORMS = ("linf", "l2")
DOUBLE = {"dtype": torch.float64}
REMEDY = "bound a network without it, or give the module a lipschitz_constant(norm) method."


class Computes(nn.Module):
    """A function, and the modules and numbers it needs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, x):
        return self.function(self, x)


def f(function, **parts):
    return Computes(lambda self, x: function(x), **parts)


def fs(function, **parts):
    return Computes(function, **parts)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **DOUBLE)


def batch_norm(kind, **options):
    layer = kind(3, **options)
    torch.manual_seed(3)
    layer.running_mean, layer.running_var = torch.randn(3), torch.rand(3) * 4 + 0.01
    if layer.affine:
        layer.weight.data, layer.bias.data = torch.randn(3) * 3, torch.randn(3)
    return layer.eval()


def affine(layer):
    torch.manual_seed(4)
    layer.weight.data.normal_()
    layer.bias.data.normal_()
    return layer


LINE, IMAGE = (6,), (3, 6, 5)

CASES = {
    # fully connected
    "linear": (nn.Linear(6, 4), LINE),
    "linear on tokens": (nn.Linear(5, 7), (4, 5)),
    "matmul": (fs(lambda s, x: x @ s.w, w=numbers(6, 3)), LINE),
    "addmm": (fs(lambda s, x: torch.addmm(s.b, x, s.w, beta=2, alpha=-3), w=numbers(6, 3), b=numbers(3)), LINE),
    "mixer": (fs(lambda s, x: s.t(x.transpose(1, 2)).transpose(1, 2), t=nn.Linear(4, 6)), (4, 5)),
    "to one number": (fs(lambda s, x: F.linear(x, s.w).unsqueeze(1), w=numbers(6)), LINE),
    # convolutions
    "conv": (nn.Conv2d(3, 4, 3, stride=2, padding=1), IMAGE),
    "conv same even": (nn.Conv2d(3, 2, 4, padding="same"), IMAGE),
    "conv circular": (nn.Conv2d(3, 2, 3, padding=2, padding_mode="circular"), IMAGE),
    "conv reflect": (nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode="reflect"), IMAGE),
    "conv replicate": (nn.Conv1d(3, 2, 3, padding=2, padding_mode="replicate"), (3, 6)),
    "depthwise": (nn.Conv2d(3, 6, (1, 3), groups=3, dilation=(1, 2)), IMAGE),
    "conv3d": (nn.Conv3d(2, 2, 2, stride=(1, 2, 1)), (2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, dilation=2), IMAGE),
    "transposed groups": (nn.ConvTranspose1d(4, 2, 3, stride=2, groups=2), (4, 5)),
    "images as a batch": (fs(lambda s, x: s.c(x.reshape(2, 3, 6)).reshape(1, -1), c=nn.Conv1d(3, 2, 3)), (6, 6)),
    "conv without batch": (fs(lambda s, x: s.c(x[0] * s.k)[None], c=nn.Conv2d(3, 2, 3), k=numbers(3, 3, 3)), (3, 3, 3)),
    # scalings
    "scaled": (f(lambda x: 3 - 2.5 * x / 0.5 + x.new_ones(6)), LINE),
    "negated": (f(lambda x: -x), LINE),
    "mask": (fs(lambda s, x: x * s.m, m=numbers(3, 1, 5)), IMAGE),
    "bool mask": (f(lambda x: x * (torch.arange(6) > 2)), LINE),
    "divided": (fs(lambda s, x: x / s.m, m=numbers(6)), LINE),
    "subtracted from": (fs(lambda s, x: torch.sub(s.m, x, alpha=3), m=numbers(6)), LINE),
    "rsub": (f(lambda x: torch.rsub(x, 2.0, alpha=3)), LINE),
    "batch norm 1d": (batch_norm(nn.BatchNorm1d), (3,)),
    "batch norm 2d": (batch_norm(nn.BatchNorm2d), IMAGE),
    "batch norm plain": (batch_norm(nn.BatchNorm2d, affine=False, eps=0.1), IMAGE),
    "batch norm in place": (nn.Sequential(batch_norm(nn.BatchNorm2d), nn.ReLU(inplace=True)), IMAGE),
    # sums and values side by side
    "twice itself": (f(lambda x: x + x), LINE),
    "minus itself": (f(lambda x: x - x), LINE),
    "residual": (fs(lambda s, x: torch.sub(x, s.l(x), alpha=2), l=nn.Linear(6, 6)), LINE),
    "broadcast constant": (fs(lambda s, x: x + s.m, m=numbers(1, 4, 6)), (1, 6)),
    "in place": (f(lambda x: x.clone().mul_(2).add_(1).relu_()), LINE),
    "cat": (f(lambda x: torch.cat([x.relu(), 2 * x], 1)), LINE),
    "cat twice": (f(lambda x: torch.cat([x, x, x], 1)), LINE),
    "cat constant": (fs(lambda s, x: torch.cat([x, s.m, -x], 1), m=numbers(1, 2)), LINE),
    "stack": (f(lambda x: torch.stack([x, x.tanh()], 1)), LINE),
    "stack twice": (f(lambda x: torch.stack([x, x], 2)), LINE),
    # moved, selected, repeated
    "moved": (f(lambda x: x.permute(0, 2, 3, 1).flatten(1).roll(2, 1).flip(1)), IMAGE),
    "view of a view": (f(lambda x: x.view(1, -1)[:, 3:].view(1, 29, -1)[..., 0]), IMAGE),
    "selected": (f(lambda x: x[:, [0, 2, 2, 2, 5]]), LINE),
    "index two": (f(lambda x: x[:, [0, 2, 2], [1, 1, 1]]), IMAGE),
    "expanded": (f(lambda x: x[:, None].expand(1, 4, 6)), LINE),
    "repeated": (f(lambda x: x.repeat(1, 3)), LINE),
    "split": (f(lambda x: x.split(2, 1)[1] - x.chunk(3, 1)[2]), LINE),
    "unbind": (f(lambda x: x.unbind(1)[2]), IMAGE),
    "padded": (f(lambda x: F.pad(x, (1, 2, 0, 1), value=3.0)), IMAGE),
    "cropped": (f(lambda x: F.pad(x, (-1, 2))), LINE),
    "padded circular": (f(lambda x: F.pad(x, (2, 1, 3, 0), mode="circular")), IMAGE),
    "padded reflect": (f(lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect")), IMAGE),
    "padded replicate": (f(lambda x: F.pad(x, (2, 1), mode="replicate")), (3, 6)),
    "pixel shuffle": (nn.PixelShuffle(2), (4, 3, 3)),
    "mean": (f(lambda x: x.mean((2, 3))), IMAGE),
    "sum": (f(lambda x: x.sum(1)), IMAGE),
    "average": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "average over what is there": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    "average to the edge": (nn.AvgPool2d(4, 3, ceil_mode=True), IMAGE),
    "average by two": (nn.AvgPool2d(3, 1, divisor_override=2), IMAGE),
    "average by minus two": (nn.AvgPool2d(3, 1, divisor_override=-2), IMAGE),
    "average 1d": (nn.AvgPool1d(3, 1), (2, 6)),
    "adaptive": (nn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest to a size": (nn.Upsample((7, 8)), IMAGE),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear corners": (nn.Upsample((7, 8), mode="bilinear", align_corners=True), IMAGE),
    "dropout": (nn.Dropout(0.5), LINE),
    # maxima
    "max pool": (nn.MaxPool2d(2), IMAGE),
    "max pool overlapping": (nn.MaxPool2d(3, 1, 1), IMAGE),
    "max pool dilated": (nn.MaxPool2d(3, 2, 1, dilation=2), (2, 9, 8)),
    "max pool ceil": (nn.MaxPool1d(3, 2, ceil_mode=True), (3, 6)),
    "max pool short": (f(lambda x: torch.max_pool2d(x, [3], [1])), IMAGE),
    "amax": (f(lambda x: x.amax((2, 3))), IMAGE),
    "maximum": (fs(lambda s, x: torch.minimum(torch.maximum(x, s.m), s.m + 1), m=numbers(6)), LINE),
    # normalisation and softmax
    "layer norm": (affine(nn.LayerNorm((5,), eps=0.1)), (4, 5)),
    "layer norm plain": (nn.LayerNorm((4, 5), eps=0.5, elementwise_affine=False), (4, 5)),
    "group norm": (affine(nn.GroupNorm(2, 4, eps=0.2)), (4, 3, 2)),
    "softmax": (nn.Softmax(1), LINE),
    "softmax over rows": (nn.Softmax(2), (4, 5)),
    # elementwise, more of them below
    "prelu channels": (affine_prelu := nn.PReLU(3), IMAGE),
    "clamp to tensors": (fs(lambda s, x: x.clamp(s.m, s.m + 1), m=numbers(6)), LINE),
    "clamp the wrong way": (f(lambda x: x.clamp(1.0, -1.0)), LINE),
}
affine_prelu.weight.data = torch.tensor([-2.0, 0.3, 1.7])


def constants(model, shape):
    network = trace(model, shape)
    return {norm: propagate(items_of(network), norm) for norm in NORMS}


def quotients(model, shape, norm, count=300):
    """||f(a) - f(b)|| / ||a - b|| for pairs of every kind: near and far, one entry, signs, shifts, around zero."""
    rng = np.random.default_rng(0)
    size = math.prod(shape)
    kind = rng.integers(0, 4, size=(count, 1))
    steps = np.choose(
        kind,
        [
            rng.standard_normal((count, size)),
            rng.choice([-1.0, 1.0], size=(count, size)),
            np.eye(size)[rng.integers(0, size, count)],
            np.ones((count, size)),
        ],
    ) * 10.0 ** rng.uniform(-3, 2, size=(count, 1))
    a = rng.standard_normal((count, size)) * 10.0 ** rng.uniform(-4, 1, size=(count, 1))
    a[rng.random(count) < 0.2] = 0.0
    b = a + steps
    with torch.no_grad():
        found = [
            np.linalg.norm((model(torch.from_numpy(there)) - model(torch.from_numpy(here))).flatten(), ORDER[norm])
            for here, there in zip(a.reshape(count, 1, *shape), b.reshape(count, 1, *shape), strict=True)
        ]
    return np.array(found) / np.linalg.norm(b - a, ORDER[norm], axis=1)


@pytest.mark.parametrize("name", CASES)
def test_no_pair_of_points_is_further_apart_than_claimed(name):
    model, shape = CASES[name]
    found = constants(model, shape)
    model = model.double().eval()
    for norm in NORMS:
        assert quotients(model, shape, norm).max() <= found[norm] * (1 + 1e-9) + 1e-15


LINEAR = [
    name
    for name in CASES
    if not any(
        word in name for word in ("max", "norm", "soft", "prelu", "clamp", "cat", "stack", "in place", "residual")
    )
]


@pytest.mark.parametrize("name", [*LINEAR, "batch norm 1d", "batch norm 2d", "batch norm plain", "cat twice"])
def test_linear_operations_are_known_to_the_last_digits_in_l_inf(name):
    """Their true constant is the norm of their Jacobian."""
    model, shape = CASES[name]
    network = trace(model, shape)
    jacobian = torch.func.jacrev(network)(torch.zeros(1, *shape, **DOUBLE)).reshape(network.nodes[-1].size, -1).numpy()
    exact = {norm: np.linalg.norm(jacobian, ORDER[norm]) for norm in NORMS}
    found = {norm: propagate(items_of(network), norm) for norm in NORMS}
    # transposed and padded convolutions are bounded on a torus, averages by Schur's test
    slack = 2.0 if "conv" in name or "transposed" in name else 1.5 if "a" in name else 1 + 1e-10
    if "split" not in name:  # a difference of two parts: added up part by part
        assert exact["linf"] * (1 - 1e-13) <= found["linf"] <= exact["linf"] * (1 + 1e-10) + 1e-300
        assert exact["l2"] * (1 - 1e-13) <= found["l2"] <= exact["l2"] * slack + 1e-300


SMOOTH = {
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "elu": nn.ELU(),
    "elu steep": nn.ELU(3.0),
    "elu flat": nn.ELU(0.2),
    "celu": nn.CELU(0.3),
    "celu wide": nn.CELU(4.0),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(threshold=40),
    "softplus steep": nn.Softplus(beta=5.0, threshold=40),
    "prelu": nn.PReLU(init=-1.5),
    "leaky": nn.LeakyReLU(0.1),
    "leaky steep": nn.LeakyReLU(2.0),
    "leaky down": nn.LeakyReLU(-3.0),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "log sigmoid": nn.LogSigmoid(),
    "softshrink": nn.Softshrink(0.7),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-2.0, 0.5),
    "threshold": nn.Threshold(0.5, 0.5),
    "clamp": f(lambda x: x.clamp(min=-0.3)),
    "absolute": f(lambda x: x.abs()),
    "sine": f(torch.sin),
    "cosine": f(torch.cos),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_those_of_the_function(name):
    """The extreme derivatives on a dense grid lie in [low, high], which is no wider by more than a thousandth."""
    model = SMOOTH[name].double().eval()
    operation = trace(model, (1,)).nodes[-1].operation
    assert isinstance(operation, Slope)
    low, high = float(operation.low), float(operation.high)
    x = torch.linspace(-30, 30, 600_002, **DOUBLE)[:, None].requires_grad_()
    (slopes,) = torch.autograd.grad(model(x).sum(), x)
    assert low <= slopes.min() + 1e-8  # torch's gradient of hardsigmoid takes 1 / 6 in float32
    assert slopes.max() - 1e-8 <= high
    assert slopes.min() <= low + 1e-3
    assert high - 1e-3 <= slopes.max()
    with torch.no_grad():  # and over finite distances, across every kink
        y = model(x).flatten().numpy()
    at = x.detach().flatten().numpy()
    for stride in (1, 7, 1001, 100_003):
        quotient = (y[stride:] - y[:-stride]) / (at[stride:] - at[:-stride])
        assert low - 1e-9 <= quotient.min()
        assert quotient.max() <= high + 1e-9


def test_slopes_left_and_right_of_zero_are_where_they_are_said_to_be():
    for name in ("relu", "leaky", "leaky down", "prelu", "absolute"):
        model = SMOOTH[name].double()
        left, right = (float(side) for side in trace(model, (1,)).nodes[-1].operation.sides)
        with torch.no_grad():
            assert model(torch.tensor([[-2.0]], **DOUBLE)).item() == pytest.approx(-2.0 * left, rel=1e-15)
            assert model(torch.tensor([[2.0]], **DOUBLE)).item() == pytest.approx(2.0 * right, rel=1e-15)
    for name in ("relu6", "hardtanh", "threshold", "clamp", "elu", "softshrink", "tanh"):
        assert trace(SMOOTH[name].double(), (1,)).nodes[-1].operation.sides is None


def attention(x):
    return torch.softmax(x @ x.transpose(1, 2), 2) @ x


PRODUCT = "a product of two values that depend on the input is not globally Lipschitz"
UNKNOWN = "no constant is known for it"
SEVERAL = "it combines several values"
REPEATS = "it repeats its input"
WITHOUT_JUMP = "threshold=40 is the same function in float32, without a jump"
REFUSED = {
    "attention": (f(attention), (3, 4), "matmul", PRODUCT),
    "fused attention": (
        f(lambda x: F.scaled_dot_product_attention(x, x, x)),
        (3, 4),
        "scaled_dot_product_attention",
        "dot-product attention is not globally Lipschitz",
    ),
    "square": (f(lambda x: x * x), LINE, "mul", PRODUCT),
    "power": (f(lambda x: x**2), LINE, "pow", "a power is not globally Lipschitz"),
    "quotient": (f(lambda x: x / x.relu()), LINE, "div", "a quotient is not globally Lipschitz"),
    "reciprocal": (f(lambda x: 1 / x), LINE, "reciprocal", UNKNOWN),
    "floor": (f(lambda x: torch.div(x, 2, rounding_mode="floor")), LINE, "div", "a quotient is not globally Lipschitz"),
    "bmm": (f(lambda x: torch.bmm(x, x.transpose(1, 2))), (3, 4), "bmm", PRODUCT),
    "einsum": (f(lambda x: torch.einsum("bij,bkj->bik", x, x)), (3, 4), "einsum", PRODUCT),
    "from the left": (
        fs(lambda s, x: s.w @ x, w=numbers(2, 3)),
        (3, 4),
        "matmul",
        "it is no fully connected layer along the last dimension",
    ),
    "where": (f(lambda x: torch.where(torch.arange(6) > 2, x, x.relu())), LINE, "where", UNKNOWN),
    "sort": (f(lambda x: x.sort(1)[0]), LINE, "sort", UNKNOWN),
    "cumsum": (f(lambda x: x.cumsum(1)), LINE, "cumsum", UNKNOWN),
    "max with places": (f(lambda x: x.max(1)[0][:, None]), LINE, "max", UNKNOWN),
    "softsign": (nn.Softsign(), LINE, "div", "a quotient is not globally Lipschitz"),
    "exponential": (f(torch.exp), LINE, "exp", UNKNOWN),
    "hardshrink": (nn.Hardshrink(), LINE, "hardshrink", UNKNOWN),
    "instance norm": (nn.InstanceNorm2d(3), IMAGE, "instance_norm", UNKNOWN),
    "cubic": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE, "upsample_bicubic2d", UNKNOWN),
    "threshold": (nn.Threshold(1.0, 0.0), LINE, "threshold", "it jumps at its threshold"),
    "early softplus": (
        nn.Softplus(threshold=2),
        LINE,
        "softplus",
        "its threshold of 2 makes it jump by 0.1; " + WITHOUT_JUMP,
    ),
    "softplus as it comes": (
        nn.Softplus(),
        LINE,
        "softplus",
        "its threshold of 20 makes it jump by 2e-09; " + WITHOUT_JUMP,
    ),
    "elu down": (nn.ELU(-1.0), LINE, "elu", "it has a negative scale"),
    "celu down": (nn.CELU(-1.0), LINE, "celu", "its alpha is negative"),
    "dropout": (f(lambda x: F.dropout(x, 0.5, training=True)), LINE, "dropout", "it is random"),
    "batch statistics": (
        nn.BatchNorm2d(3, track_running_stats=False),
        IMAGE,
        "batch_norm",
        "it normalises by the statistics of its batch",
    ),
    "layer norm without eps": (
        nn.LayerNorm(6, eps=0.0),
        LINE,
        "layer_norm",
        "with eps = 0 it is not globally Lipschitz",
    ),
    "float32 inside": (f(lambda x: x.float().double()), LINE, "to", "it rounds to float32"),
    "two shapes": (f(lambda x: x + x.mean(1, keepdim=True)), LINE, "add", "it adds values of different shapes"),
    "held twice": (f(lambda x: torch.cat([x, x.relu(), x], 1)), LINE, "cat", "it holds one value twice"),
    "larger of two": (
        f(lambda x: torch.maximum(x, -x)),
        LINE,
        "maximum",
        "it compares values that both depend on the input",
    ),
    "clamp by itself": (f(lambda x: x.clamp(min=-2 * x)), LINE, "clamp", SEVERAL),
    "rsub of two": (f(lambda x: torch.rsub(x, x.relu())), LINE, "rsub", SEVERAL),
    "input as bias": (f(lambda x: F.linear(x, torch.eye(6, **DOUBLE), x[0])), LINE, "linear", SEVERAL),
    "itself as bias": (f(lambda x: F.linear(x, torch.eye(6, **DOUBLE), x)), LINE, "linear", SEVERAL),
    "input as batch norm's weight": (
        f(lambda x: F.batch_norm(x, torch.zeros(6, **DOUBLE), torch.ones(6, **DOUBLE), x[0])),
        LINE,
        "batch_norm",
        SEVERAL,
    ),
    "input as layer norm's weight": (f(lambda x: F.layer_norm(x, (6,), x[0])), LINE, "layer_norm", SEVERAL),
    "input as kernel": (f(lambda x: F.conv1d(x, x.transpose(0, 1), groups=3)), (3, 4), "conv1d", SEVERAL),
    "clamp repeats": (f(lambda x: x.clamp(min=torch.zeros(1, 4, 6, **DOUBLE))), (1, 6), "clamp", REPEATS),
    "mul repeats": (f(lambda x: x * torch.ones(1, 4, 6, **DOUBLE)), (1, 6), "mul", REPEATS),
    "sub repeats": (f(lambda x: torch.ones(1, 4, 6, **DOUBLE) - x), (1, 6), "sub", REPEATS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_constant_is_named(name):
    model, shape, what, why = REFUSED[name]
    network = trace(model, shape)
    bad = network.unbounded()
    at = f"in {bad[0].kind} at 'the top level'"
    assert bad[0].kind == type(model).__name__
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    rule = "a Lipschitz bound needs operations with a known constant"
    with refused(ModelError, f"{rule}, but got {what} {at}{more} ({why}); {REMEDY}"):
        items_of(network)


def test_values_that_are_no_real_numbers_are_named():
    for model in (f(lambda x: x * (x > 0)), f(lambda x: x.long().double()), f(lambda x: x[:, x.argmax(1)])):
        first = trace(model, LINE).unbounded()[0].operation
        assert isinstance(first, Unbounded)
        assert first.why == "its values are not real numbers"


def test_a_constant_a_module_claims_must_make_sense():
    class Claims(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return 2 * x

        def lipschitz_constant(self, norm):
            return self.value

    assert constants(Claims(7.0), LINE) == pytest.approx({"linf": 7.0, "l2": 7.0}, rel=1e-14)
    for bad in (-1.0, math.nan):
        with refused(ModelError, f"lipschitz_constant(norm) must be zero or more, but got {bad}; correct Claims."):
            constants(Claims(bad), LINE)
