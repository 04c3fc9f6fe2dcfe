"""Layers of low rank, W = A B with A of shape h x r and B of shape r x d, from scratch or from a trained layer.

A fully connected layer multiplies with B and then with A. A convolution of matrix h x (c k k) becomes a spatial convolution
to r channels (B) and a 1 x 1 convolution (A). Where it has groups, all groups share the r filters of B, so that A B is
still its matrix, of rank r. Both take the place of the plain layer: ``weight`` is what code that reads it expects.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import matrix64
from pinchpoint.utils.threads import one_thread

Size = int | tuple[int, int]
"""One number for both spatial dimensions, or one for each."""
_Layer = TypeVar("_Layer", bound=nn.Module)
_MANY_THREADS_FROM = 1024


class LowRankLinear(nn.Module):
    """A fully connected layer of rank at most r, y = A (B x) + b.

    A and B start so that A B has entries of the variance ``nn.Linear`` starts with.

    Args:
        in_features: d.
        out_features: h.
        rank: r, 1 ... min(h, d).
        bias: whether there is one.
        device, dtype: of the parameters.

    Raises:
        ModelError: where the rank is out of range.

    >>> LowRankLinear(6, 4, rank=2)(torch.zeros(3, 6)).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_rank(rank, out_features, in_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a, self.b = _factors(out_features, (in_features,), rank, where)
        self.bias = _bias(out_features, in_features, where) if bias else None

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch h"]:
        return functional.linear(functional.linear(x, self.b), self.a, self.bias)

    def weight_matrix(self) -> Float[Tensor, "h d"]:
        """A B, differentiable."""
        return self.a @ self.b

    @property
    def weight(self) -> Float[Tensor, "h d"]:
        """The weight of the plain layer, for modules that read it instead of calling the layer (attention does)."""
        return self.weight_matrix()

    def dense(self) -> nn.Linear:
        """The plain layer with the matrix A B, multiplied in float64."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.a.dtype)
        return _with(plain, self, {"weight": _matrix(self), "bias": self.bias})

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv2d(nn.Module):
    """A convolution whose h x (c k k) matrix has rank at most r: a spatial one to r channels, then one of 1 x 1.

    With ``groups`` the matrix is h x (c / groups k k), and each group's channels pass through the same r spatial filters.

    Args:
        in_channels: c.
        out_channels: h.
        kernel_size, stride, padding, dilation, groups, padding_mode: as ``nn.Conv2d`` has them.
        rank: r, 1 ... min(h, c / groups k k).
        bias: whether there is one.
        device, dtype: of the parameters.

    Raises:
        ModelError: where the rank is out of range, or the groups do not divide both numbers of channels.

    >>> LowRankConv2d(3, 8, 3, rank=2, padding=1)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        rank: int,
        stride: Size = 1,
        padding: Size | Literal["same", "valid"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular", "reflect", "replicate"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ModelError(
                "groups must divide the channels of input and output",
                f"{groups} groups of {in_channels} and {out_channels} channels",
                "choose another number",
            )
        self.in_channels, self.out_channels, self.rank, self.groups = in_channels, out_channels, rank, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.padding_mode = padding_mode
        filters = (in_channels // groups, *self.kernel_size)
        check_rank(rank, out_channels, math.prod(filters))
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a, self.b = _factors(out_channels, filters, rank, where)
        self.bias = _bias(out_channels, math.prod(filters), where) if bias else None

    def forward(self, x: Float[Tensor, "*batch c height width"]) -> Float[Tensor, "*batch h lower narrower"]:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._pads(), mode=self.padding_mode), (0, 0)
        filters = self.b if self.groups == 1 else self.b.repeat(self.groups, 1, 1, 1)
        inner = functional.conv2d(x, filters, None, self.stride, padding, self.dilation, self.groups)
        return functional.conv2d(inner, self.a[:, :, None, None], self.bias, groups=self.groups)

    def _pads(self) -> tuple[int, int, int, int]:
        """Positions to add left, right, above and below."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if isinstance(self.padding, str):
            down, right = (step * (side - 1) for step, side in zip(self.dilation, self.kernel_size, strict=True))
            return right // 2, right - right // 2, down // 2, down - down // 2
        return self.padding[1], self.padding[1], self.padding[0], self.padding[0]

    def weight_matrix(self) -> Float[Tensor, "h d"]:
        """A B, differentiable, with a row an output channel."""
        return self.a @ self.b.flatten(1)

    @property
    def weight(self) -> Float[Tensor, "h c kernel_height kernel_width"]:
        """The weight of the plain convolution."""
        return self.weight_matrix().view(-1, *self.b.shape[1:])

    def dense(self) -> nn.Conv2d:
        """The plain convolution with the matrix A B, multiplied in float64."""
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
            dtype=self.a.dtype,
        )
        return _with(plain, self, {"weight": _matrix(self).view(plain.weight.shape), "bias": self.bias})

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"
        usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        return shown + "".join(f", {k}={getattr(self, k)}" for k, value in usual.items() if getattr(self, k) != value)


LowRank = LowRankLinear | LowRankConv2d
"""A layer of low rank."""


@overload
def truncate(layer: nn.Linear, rank: int) -> LowRankLinear: ...
@overload
def truncate(layer: nn.Conv2d, rank: int) -> LowRankConv2d: ...
def truncate(layer: nn.Linear | nn.Conv2d, rank: int) -> LowRank:
    """The best rank-r approximation of a trained layer (Eckart-Young), sharing sqrt(sigma) between A and B.

    A convolution's is that of its h x (c k k) matrix. Device, dtype, mode and what is frozen stay as they are; the
    singular vectors are computed in float64.

    Raises:
        ModelError: where the rank is out of range, or a weight is not finite.

    >>> layer = nn.Conv2d(2, 4, 3)
    >>> bool(torch.allclose(truncate(layer, 4).weight, layer.weight, atol=1e-5))
    True
    """
    low = untrained(layer, rank, device="meta")
    a, b = _truncated(_matrix(layer), rank)
    return _with(low, layer, {"a": a, "b": b.view(low.b.shape), "bias": layer.bias})


def untrained(layer: nn.Linear | nn.Conv2d, rank: int, device: torch.device | str | None = None) -> LowRank:
    """A layer of that rank for the same inputs and outputs, with random weights from the global RNG.

    It takes over dtype, mode and what is frozen; on the meta device it holds no weights and draws none.

    Raises:
        ModelError: where the rank is out of range.

    >>> untrained(nn.Linear(5, 4), 2)
    LowRankLinear(in_features=5, out_features=4, rank=2)
    """
    where: dict[str, Any] = {"device": layer.weight.device if device is None else device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        low: LowRank = LowRankLinear(layer.in_features, layer.out_features, rank, layer.bias is not None, **where)
    else:
        low = LowRankConv2d(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            rank,
            cast(tuple[int, int], layer.stride),
            cast(Any, layer.padding),
            cast(tuple[int, int], layer.dilation),
            layer.groups,
            layer.bias is not None,
            cast(Any, layer.padding_mode),
            **where,
        )
    return _with(low, layer, {})


def _truncated(matrix: Float[Tensor, "h d"], rank: int) -> tuple[Float[Tensor, "h r"], Float[Tensor, "r d"]]:
    """A and B of the truncated SVD.

    With W = R' Q' for a wide W, the left singular vectors of W are the right ones of the small triangle R, and W itself
    gives the others: five times as fast as an SVD of W, and as accurate.
    """
    if matrix.shape[0] > matrix.shape[1]:
        a, b = _truncated(matrix.T, rank)
        return b.T, a.T
    with one_thread(len(matrix) < _MANY_THREADS_FROM):
        _, sigma, vh = torch.linalg.svd(torch.linalg.qr(matrix.T, mode="r").R)
        root, vectors = sigma[:rank].sqrt(), vh[:rank]
        return vectors.T * root, torch.where(root > 0, 1.0 / root, 0.0)[:, None] * (vectors @ matrix)


def check_rank(rank: int, h: int, d: int) -> None:
    """Refuse a rank outside 1 ... min(h, d)."""
    if not 1 <= rank <= min(h, d):
        raise ModelError(f"the rank of a {h} x {d} layer lies in 1 ... {min(h, d)}", rank, "choose one in that range")


def _factors(h: int, columns: tuple[int, ...], rank: int, where: dict[str, Any]) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B, random."""
    # torch draws from U(-1/sqrt(d), 1/sqrt(d)), variance 1/(3d); r products of variance v^2 sum to r v^2.
    bound = math.sqrt(3.0) * (1.0 / (3.0 * math.prod(columns) * rank)) ** 0.25
    shapes = (h, rank), (rank, *columns)
    a, b = (nn.Parameter(torch.empty(shape, **where).uniform_(-bound, bound)) for shape in shapes)
    return a, b


def _bias(h: int, d: int, where: dict[str, Any]) -> nn.Parameter:
    limit = 1.0 / math.sqrt(d)
    return nn.Parameter(torch.empty(h, **where).uniform_(-limit, limit))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _matrix(layer: nn.Module) -> Float[Tensor, "h d"]:
    matrix = matrix64(layer)
    assert matrix is not None
    return matrix


def _with(new: _Layer, old: nn.Module, values: dict[str, Tensor | None]) -> _Layer:
    """The new layer with copies of these values, in the old one's mode, frozen where that is."""
    trained = {"bias" in name: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, value in values.items():
        if value is not None:
            copied = value.detach().to(getattr(new, name).dtype, copy=True, memory_format=torch.contiguous_format)
            setattr(new, name, nn.Parameter(copied))
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(trained[name == "bias"])
    return new.train(old.training)
