"""What is known about each operation a network is made of: the rules, one a kind, by the name of the ATen operation.

Dense layers, convolutions and diagonal scalings are linear; ``Positive`` operations are affine with coefficients of zero or
more (reshaping, selecting, padding, averaging); ``Slope`` is elementwise with slopes in [low, high]; ``Largest`` takes
maxima over windows. Everything else is ``Unbounded`` and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.measure.convolution.operator import Convolution
from pinchpoint.measure.spectrum import inflate
from pinchpoint.records import Norm


@runtime_checkable
class HasLipschitz(Protocol):
    """A module that knows its own constant; it must hold for every pair of inputs."""

    def lipschitz_constant(self, norm: Norm) -> float:
        """An upper bound on ||f(a) - f(b)|| / ||a - b|| in that norm."""
        ...


class _Varying:
    """Stands in a call's arguments where a value depends on the network's input. There is one."""

    def __repr__(self) -> str:
        return "VARYING"


VARYING = _Varying()


@dataclass(frozen=True)
class Call:
    """One operation as it was traced: what depends on the input is ``VARYING`` in ``args`` and ``kwargs``, ``reads`` times.

    ``operands`` are the names that torch gives to its arguments, in their order.
    """

    name: str
    operands: tuple[str, ...]
    args: Any
    kwargs: Any
    part: Any
    reads: int
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    run: Callable[..., Tensor]

    def option(self, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        if len(self.args) > place:
            return self.args[place]
        return self.kwargs.get(name, default)

    def varying(self) -> list[int | str]:
        """Places and names of the arguments that depend on the input."""
        named = (*enumerate(self.args), *self.kwargs.items())
        return [place for place, value in named if _holds_varying(value)]


def _holds_varying(value: Any) -> bool:
    return value is VARYING or (isinstance(value, list | tuple) and any(map(_holds_varying, value)))


@dataclass(frozen=True)
class Dense:
    """x -> W x along the last dimension."""

    weight: Float[Tensor, "h d"]


@dataclass(frozen=True)
class Conv:
    """A convolution on inputs of a known size."""

    operator: Convolution


@dataclass(frozen=True)
class Scale:
    """x -> factor * x + shift, entry by entry; ``factor`` broadcasts to the value's shape."""

    factor: Tensor


@dataclass(frozen=True)
class Positive:
    """Affine in one input, with coefficients of zero or more; ``moves`` says what it does to the entries at most."""

    moves: Literal["nothing", "order", "anything"] = "anything"


@dataclass(frozen=True)
class Sum:
    """The weighted sum of its inputs, all of one shape."""

    weights: tuple[float, ...]


@dataclass(frozen=True)
class Join:
    """Inputs side by side."""


@dataclass(frozen=True)
class Slope:
    """Elementwise, with difference quotients in [low, high]: numbers, or tensors that broadcast to the value's shape.

    ``sides`` are the slopes left and right of zero, of a function that is straight on both sides.
    """

    low: float | Tensor
    high: float | Tensor
    sides: tuple[float | Tensor, float | Tensor] | None = None


@dataclass(frozen=True)
class Largest:
    """The largest entry of each window; an entry lies in at most ``windows`` of them."""

    windows: int


@dataclass(frozen=True)
class Known:
    """An operation whose constants are known; ``keeps_differences`` of those of its entries along the last dimension."""

    constant: Callable[[Norm], float]
    keeps_differences: bool = False

    @classmethod
    def of(cls, module: HasLipschitz) -> Known:
        """What a module says of itself."""

        def constant(norm: Norm) -> float:
            value = module.lipschitz_constant(norm)
            if not value >= 0:
                raise ModelError(
                    "lipschitz_constant(norm) must be zero or more", value, f"correct {type(module).__name__}"
                )
            return inflate(value, 1)

        return cls(constant)


@dataclass(frozen=True)
class Unbounded:
    """What it is, and why it has no constant here."""

    what: str
    why: str


Operation = Dense | Conv | Scale | Positive | Sum | Join | Slope | Largest | Known | Unbounded
Linear = Dense | Conv | Scale | Positive


def understand(call: Call) -> Operation:
    """The kind of an operation."""
    if not call.dtype.is_floating_point:
        return Unbounded(call.name, "its values are not real numbers")
    if call.dtype != torch.float64:
        return Unbounded(call.name, f"it rounds to {str(call.dtype).removeprefix('torch.')}")
    if call.name not in _RULES.keys() | _REGULAR:
        return Unbounded(call.name, _REASONS.get(call.name, "no constant is known for it"))
    if call.reads > 1 and call.name not in _COMBINING:
        return Unbounded(call.name, "it combines several values")
    allowed = _MAY_VARY.get(call.name, {0})
    if others := [place for place in call.varying() if place not in allowed]:
        operand = call.operands[others[0]] if isinstance(others[0], int) else others[0]
        return Unbounded(call.name, f"its {operand} depends on the input")
    operation = _by_name(call)
    if not all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in _numbers(operation)):
        return Unbounded(call.name, "its numbers are not finite")
    return operation


def _numbers(operation: Operation) -> tuple[float | Tensor, ...]:
    """What an operation multiplies by."""
    if isinstance(operation, Dense):
        return (operation.weight,)
    if isinstance(operation, Conv):
        return (operation.operator.weight,)
    if isinstance(operation, Scale):
        return (operation.factor,)
    if isinstance(operation, Slope):
        return operation.low, operation.high
    return operation.weights if isinstance(operation, Sum) else ()


def _by_name(call: Call) -> Operation:
    if call.name in _POSITIVE:
        return Positive(_POSITIVE[call.name])
    if call.name in _SLOPES:
        if call.shape != call.shapes[0]:
            return Unbounded(call.name, "it repeats its input")
        low, high = _SLOPES[call.name]
        return Slope(low, high, _STRAIGHT.get(call.name))
    return _RULES[call.name](call)


def _slope_of_gelu(call: Call) -> Operation:
    # the erf form has its steepest slope at sqrt(2): Phi(sqrt 2) + sqrt(2) phi(sqrt 2) = 1.12890...; the tanh form 1.1291
    high = 1.1289042 if call.kwargs.get("approximate", "none") == "none" else 1.1292
    return Slope(1.0 - high, high)


def _leaky(call: Call) -> Operation:
    slope = float(call.option(1, "negative_slope", 0.01))
    return Slope(min(slope, 1.0), max(slope, 1.0), (slope, 1.0))


def _prelu(call: Call) -> Operation:
    weight, dims = call.args[1], len(call.shape)
    shaped = weight.reshape(1, -1, *(1,) * (dims - 2)) if dims > 1 else weight
    return Slope(shaped.clamp(max=1.0), shaped.clamp(min=1.0), (shaped, 1.0))


def _elu(call: Call) -> Operation:
    alpha, scale, input_scale = (
        float(call.option(i + 1, n, 1.0)) for i, n in enumerate(("alpha", "scale", "input_scale"))
    )
    if min(alpha, scale, input_scale) < 0:
        return Unbounded(call.name, "it has a negative scale")
    return Slope(0.0, scale * max(1.0, alpha * input_scale))


def _celu(call: Call) -> Operation:
    return Slope(0.0, 1.0) if call.option(1, "alpha", 1.0) > 0 else Unbounded(call.name, "its alpha is negative")


def _softplus(call: Call) -> Operation:
    # above the threshold torch takes the identity: a jump of log(1 + exp(-threshold)) / beta at threshold / beta, which is
    # no jump only where float64 rounds it away (from 34 on)
    threshold = float(call.option(2, "threshold", 20))
    if threshold + math.log1p(math.exp(-min(abs(threshold), 700.0))) == threshold > 0.0:
        return Slope(0.0, 1.0)
    return Unbounded(
        call.name,
        f"its threshold of {threshold:g} makes it jump by {math.exp(-abs(threshold)):.1g}; threshold=40 is the same "
        "function in float32, without a jump",
    )


def _threshold(call: Call) -> Operation:
    at, value = (float(part) for part in call.args[1:3])
    return Slope(0.0, 1.0) if at == value else Unbounded(call.name, "it jumps at its threshold")


def _maximum(call: Call) -> Operation:
    if len(call.shapes) == 1 and call.shape == call.shapes[0] and len(call.varying()) == 1:
        return Slope(0.0, 1.0)
    return Unbounded(call.name, "it compares values that both depend on the input")


def _dropout(call: Call) -> Operation:
    return Unbounded(call.name, "it is random") if call.option(2, "train", False) else Positive("nothing")


def _linear(call: Call) -> Operation:
    return Dense(call.args[1].reshape(-1, call.args[1].shape[-1]))


def _matmul(call: Call) -> Operation:
    first, second = call.args[0], call.args[1]
    if first is VARYING and isinstance(second, Tensor) and second.ndim == 2:
        return Dense(second.T)
    if call.reads == 1:
        return Unbounded(call.name, "it is no fully connected layer along the last dimension")
    return Unbounded(call.name, "a product of two values that depend on the input is not globally Lipschitz")


def _einsum(call: Call) -> Operation:
    if call.reads > 1:
        return Unbounded(call.name, "a product of two values that depend on the input is not globally Lipschitz")
    terms, _, result = str(call.args[0]).replace(" ", "").partition("->")
    places = [place for place, operand in enumerate(call.args[1]) if operand is VARYING]
    letters = terms.split(",")
    if len(letters) == 2 and len(places) == 1:
        value, weight = letters[places[0]], letters[1 - places[0]]
        matrix = call.args[1][1 - places[0]]
        for summed, kept in permutations(weight) if len(weight) == 2 else ():
            # x[..., i] and w[i, j] or w[j, i] give y[..., j]: a fully connected layer along the last dimension
            if value == f"{value[:-1]}{summed}" and result == f"{value[:-1]}{kept}" and kept not in value:
                return Dense(matrix.T if weight[0] == summed else matrix)
    return Unbounded(call.name, "it is no fully connected layer along the last dimension")


def _addmm(call: Call) -> Operation:
    return Dense(call.args[2].T * float(call.kwargs.get("alpha", 1)))


def _conv(call: Call) -> Operation:
    transposed = "transpose" in call.name
    weight = call.args[1]
    dims = weight.ndim - 2

    def sizes(value: Any) -> tuple[int, ...]:
        listed = tuple(value) if isinstance(value, list | tuple) else (value,)
        return listed * dims if len(listed) == 1 else listed

    stride = sizes(call.option(3, "stride", 1))
    padding = call.option(4, "padding", 0)
    places = (7, 6, 5) if transposed else (5, 6, None)
    dilation = sizes(call.option(places[0], "dilation", 1))
    groups = int(call.option(places[1], "groups", 1))
    output_padding = sizes(call.option(places[2], "output_padding", 0)) if places[2] else (0,) * dims
    if isinstance(padding, str):
        totals = [
            step * (side - 1) if padding == "same" else 0 for step, side in zip(dilation, weight.shape[2:], strict=True)
        ]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((side, side) for side in sizes(padding))
    return Conv(
        Convolution(
            weight=weight,
            input_size=call.shapes[0][-dims:],
            stride=stride,
            padding=pads,
            dilation=dilation,
            groups=groups,
            transposed=transposed,
            output_padding=output_padding,
            padding_mode="zeros",
        )
    )


def _batch_norm(call: Call) -> Operation:
    if call.name == "batch_norm":
        weight, _bias, _mean, variance, training, _momentum, eps = call.args[1:8]
        if training or variance is None:
            return Unbounded(call.name, "it normalises by the statistics of its batch")
    else:
        weight, _bias, _mean, variance, _momentum, eps = call.args[1:7]
    factor = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    return Scale(factor.reshape(1, -1, *(1,) * (len(call.shape) - 2)))


def _add(call: Call) -> Operation:
    sign = -1.0 if call.name == "sub" else 1.0
    alpha = sign * float(call.kwargs.get("alpha", 1))
    first, second = call.args[0], call.args[1]
    if first is VARYING and second is VARYING:
        if len(call.shapes) == 1:
            return Scale(torch.tensor(1.0 + alpha, dtype=torch.float64))
        if any(shape != call.shape for shape in call.shapes):
            return Unbounded(call.name, "it adds values of different shapes")
        return Sum((1.0, alpha))
    if call.shape != call.shapes[0]:
        return Positive() if first is VARYING or alpha >= 0 else Unbounded(call.name, "it repeats its input")
    return Scale(torch.tensor(1.0 if first is VARYING else alpha, dtype=torch.float64))


def _reversed_sub(call: Call) -> Operation:
    if call.shape != call.shapes[0]:
        return Unbounded(call.name, "it repeats its input")
    if len(call.varying()) == 2:
        return Unbounded(call.name, "it combines several values")
    sign = -1.0 if call.args[0] is VARYING else 1.0
    return Scale(torch.tensor(sign * float(call.option(2, "alpha", 1) if sign < 0 else 1), dtype=torch.float64))


def _multiply(call: Call) -> Operation:
    constant = call.args[1] if call.args[0] is VARYING else call.args[0]
    if constant is VARYING:
        return Unbounded(call.name, "a product of two values that depend on the input is not globally Lipschitz")
    if call.shape != call.shapes[0]:
        return Unbounded(call.name, "it repeats its input")
    return Scale(torch.as_tensor(constant, dtype=torch.float64))


def _divide(call: Call) -> Operation:
    if call.args[1] is VARYING or call.kwargs.get("rounding_mode") is not None:
        return Unbounded(call.name, "a quotient is not globally Lipschitz")
    if call.shape != call.shapes[0]:
        return Unbounded(call.name, "it repeats its input")
    return Scale(1.0 / torch.as_tensor(call.args[1], dtype=torch.float64))


def _negate(call: Call) -> Operation:
    return Scale(torch.tensor(-1.0, dtype=torch.float64))


def _join(call: Call) -> Operation:
    if len(call.shapes) == 1:
        return Positive()
    if sum(part is VARYING for part in call.args[0]) != len(call.shapes):
        return Unbounded(call.name, "it holds one value twice")
    return Join()


def _max_pool(call: Call) -> Operation:
    dims = int(call.name[-2])

    def sizes(place: int, name: str, default: Any) -> tuple[int, ...]:
        value = call.option(place, name, default)
        listed = tuple(value) if isinstance(value, list | tuple) else (value,)
        return listed * dims if len(listed) == 1 else listed or default

    kernel = sizes(1, "kernel_size", 1)
    stride, dilation = sizes(2, "stride", kernel), sizes(4, "dilation", 1)
    # taps of a window that can reach one entry: one in every stride / gcd(stride, dilation)
    return Largest(
        math.prod(math.ceil(k / (s // math.gcd(s, d))) for k, s, d in zip(kernel, stride, dilation, strict=True))
    )


def _amax(call: Call) -> Operation:
    return Largest(1)


def _normalize(sizes: int, weight: Tensor | None, eps: float, name: str) -> Operation:
    if eps <= 0:
        return Unbounded(name, "with eps = 0 it is not globally Lipschitz")
    top = 1.0 if weight is None else float(weight.abs().max())
    if not math.isfinite(top):
        return Unbounded(name, "its numbers are not finite")

    def constant(norm: Norm) -> float:
        # J = diag(gamma) (I - 11'/n) (I - zz'/n) / sqrt(var + eps): a product of projections, over at least sqrt(eps)
        return inflate(top / math.sqrt(eps) * (math.sqrt(sizes) if norm == "linf" else 1.0), sizes)

    return Known(constant)


def _layer_norm(call: Call) -> Operation:
    return _normalize(
        math.prod(call.args[1]), call.option(2, "weight", None), float(call.option(4, "eps", 1e-5)), call.name
    )


def _group_norm(call: Call) -> Operation:
    size = math.prod(call.shape[1:]) // int(call.args[1])
    return _normalize(size, call.option(2, "weight", None), float(call.option(4, "eps", 1e-5)), call.name)


def _log_softmax(call: Call) -> Operation:
    # J = I - 1 p' is a projection along the ones: its rows sum to 2 (1 - p_i), its l2 norm is sqrt(n) ||p||_2
    classes = call.shape[int(call.args[1])]

    def constant(norm: Norm) -> float:
        if classes == 1:
            return 0.0
        return 2.0 if norm == "linf" else inflate(math.sqrt(classes), 1)

    return Known(constant, keeps_differences=int(call.args[1]) in (-1, len(call.shape) - 1))


def _softmax(call: Call) -> Operation:
    return Known(lambda norm: 0.5)  # J = diag(p) - pp': rows sum to 2 p (1 - p) <= 1/2 in absolute value


def _index(call: Call) -> Operation:
    return Positive()


# names are those of ATen operations
_KEEPING = (
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze clone contiguous alias detach _to_copy to identity"
)
_REORDERING = "permute transpose t movedim pixel_shuffle pixel_unshuffle channel_shuffle roll flip"
_SELECTING = "expand repeat slice select narrow split split_with_sizes chunk unbind mean sum constant_pad_nd pad"
_PADDING = "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
_AVERAGING = (
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d"
)
_ENLARGING = "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d"
_POSITIVE: dict[str, Literal["nothing", "order", "anything"]] = {
    **dict.fromkeys(_KEEPING.split(), "nothing"),
    **dict.fromkeys(_REORDERING.split(), "order"),
    **dict.fromkeys(" ".join((_SELECTING, _PADDING, _AVERAGING, _ENLARGING)).split(), "anything"),
}
_SLOPES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "tanh", "clamp", "clamp_min", "clamp_max", "softshrink"), (0.0, 1.0)),
    "log_sigmoid": (0.0, 1.0),
    **dict.fromkeys(("abs", "sin", "cos"), (-1.0, 1.0)),
    "sigmoid": (0.0, 0.25),
    "hardsigmoid": (0.0, 1.0 / 6.0 + 1e-15),
    "hardswish": (-0.5, 1.5),
    "silu": (-0.09984, 1.09984),
    "mish": (-0.11258, 1.08850),
    "selu": (0.0, 1.7580994),
}
_STRAIGHT: dict[str, tuple[float | Tensor, float | Tensor]] = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0)}
_RULES: dict[str, Callable[[Call], Operation]] = {
    "gelu": _slope_of_gelu,
    "leaky_relu": _leaky,
    "prelu": _prelu,
    "elu": _elu,
    "celu": _celu,
    "softplus": _softplus,
    "threshold": _threshold,
    "maximum": _maximum,
    "minimum": _maximum,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _add,
    "sub": _add,
    "rsub": _reversed_sub,
    "mul": _multiply,
    "div": _divide,
    "neg": _negate,
    "cat": _join,
    "stack": _join,
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    "amax": _amax,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "softmax": _softmax,
    "_softmax": _softmax,
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
    "index": _index,
}
_REGULAR = _POSITIVE.keys() | _SLOPES.keys()
_COMBINING = {"add", "sub", "mul", "div", "matmul", "mm", "maximum", "minimum", "cat", "stack", "einsum"}
_MAY_VARY: dict[str, set[int | str]] = {
    **{name: {0, 1} for name in ("add", "sub", "rsub", "mul", "div", "matmul", "mm", "maximum", "minimum")},
    "addmm": {1},
    "einsum": {1},
}
"""Arguments that may depend on the input, where it is not the first alone: the rules take all others to be constants."""
_REASONS = {
    "scaled_dot_product_attention": "dot-product attention is not globally Lipschitz",
    "bmm": "a product of two values that depend on the input is not globally Lipschitz",
    "pow": "a power is not globally Lipschitz",
    "_native_batch_norm_legit": "it normalises by the statistics of its batch",
}
