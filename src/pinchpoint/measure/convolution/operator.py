"""A convolution as the linear operator it is on inputs of one size: applied, transposed, or written out as a matrix.

Output o, tap t and padded position o * stride + t * dilation, in every spatial dimension: a transposed convolution is the
adjoint of a direct one, so all geometry here is that of direct convolutions. The bias is no part of the operator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import as_matrix
from pinchpoint.measure.weights import acting64

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]

_DIRECT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Convolution:
    """The linear operator of a convolution on inputs of a known size, in float64, without its bias.

    Attributes:
        weight: out x in/groups x kernel; for a transposed convolution in x out/groups x kernel, as torch has it.
        input_size: the spatial size of one input.
        stride: one number a spatial dimension, as are ``dilation`` and ``output_padding``.
        padding: positions added before and after, in each spatial dimension; a negative number crops. A transposed
            convolution crops its output by them.
        groups: how many groups the channels fall into.
        transposed: whether this is the adjoint of a direct convolution.
        output_padding: positions a transposed convolution adds at the end of its output.
        padding_mode: what stands at the padded positions.

    Raises:
        ModelError: where the input is too small for the kernel or for its padding.

    >>> blur = torch.tensor([[[1.0, 2.0, 1.0]]], dtype=torch.float64)
    >>> Convolution(blur, (3,), (1,), (1,), ((1, 1),)).dense().tolist()
    [[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]
    """

    weight: Float[Tensor, "a b *kernel"]
    input_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    padding_mode: PaddingMode = "zeros"

    def __post_init__(self) -> None:
        size = self.input_size
        if len(size) != len(self.kernel) or min(size, default=1) < 1:
            raise ModelError(
                f"the input size of this convolution must be {len(self.kernel)} positive number(s)",
                size,
                "give the spatial size of what the layer sees, for example (32, 32)",
            )
        if min(self.output_shape[1:], default=1) < 1:
            raise ModelError(
                f"the padded input must be at least as large as the kernel {self.kernel} with dilation {self.dilation}",
                f"input size {size} with padding {self.padding}",
                "give a larger input size",
            )
        most = {"reflect": -1, "circular": 0}.get(self.padding_mode)  # torch refuses these inputs too
        if most is not None and any(max(pads) > n + most for n, pads in zip(size, self.padding, strict=True)):
            raise ModelError(
                f"{self.padding_mode} padding must be {'smaller than' if most else 'at most'} the input",
                f"input size {size} with padding {self.padding}",
                "give a larger input size",
            )

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's spatial size."""
        return tuple(self.weight.shape[2:])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels and size of one input."""
        channels = self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups
        return (channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Channels and size of one output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sides = zip(self.input_size, self.stride, self.padding, reach, strict=True)
        if self.transposed:
            sizes = [(n - 1) * s - sum(pads) + r for n, s, pads, r in sides]
            sizes = [n + extra for n, extra in itertools.zip_longest(sizes, self.output_padding, fillvalue=0)]
            return (self.weight.shape[1] * self.groups, *sizes)
        return (self.weight.shape[0], *((n + sum(pads) - r) // s + 1 for n, s, pads, r in sides))

    @cached_property
    def direct(self) -> Convolution:
        """The direct convolution that this is, or that this is the adjoint of: their norms in l2 are the same."""
        if not self.transposed:
            return self
        added = self.output_padding or (0,) * len(self.kernel)
        padding = tuple((before, after - extra) for (before, after), extra in zip(self.padding, added, strict=True))
        return replace(self, input_size=self.output_shape[1:], padding=padding, transposed=False, output_padding=())

    def apply(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *image"]:
        """The operator on a batch of inputs."""
        return self.direct._backward(x) if self.transposed else self._forward(x)

    def adjoint(self, y: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch *shape"]:
        """Its transpose on a batch of outputs: <A x, y> = <x, A' y>."""
        return self.direct._forward(y) if self.transposed else self._backward(y)

    def dense(self) -> Float[Tensor, "out in"]:
        """The operator as a matrix on flattened inputs."""
        blocks = self.direct.blocks()
        matrix = blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)
        return matrix.mT if self.transposed else matrix

    def blocks(self) -> Float[Tensor, "groups out in"]:
        """The diagonal blocks of a direct convolution's matrix, one a group; outside them it is zero."""
        rows, columns = math.prod(self.output_shape[1:]), math.prod(self.input_size)
        weight = self.weight.unflatten(0, (self.groups, -1))  # groups, out, in, kernel
        matrix: Tensor = weight.new_zeros(*weight.shape[:2], rows, weight.shape[2], columns)
        by_position = matrix.permute(2, 4, 0, 1, 3)
        for tap in itertools.product(*map(range, self.kernel)):
            row, column = self._touched(tap)
            by_position[row, column] += weight[(..., *tap)]  # no output meets an input twice by one tap
        return matrix.flatten(3).flatten(1, 2)

    def sources(self, dim: int) -> Int[Tensor, "outputs taps"]:
        """The input position that each output of a direct convolution sees by each tap along ``dim``; -1 for none."""
        n, (before, _), outputs = self.input_size[dim], self.padding[dim], self.output_shape[1 + dim]
        device = self.weight.device
        starts = torch.arange(outputs, device=device) * self.stride[dim] - before
        at = starts[:, None] + torch.arange(self.kernel[dim], device=device) * self.dilation[dim]
        return self._inside(at, n)

    def _inside(self, at: Int[Tensor, "*shape"], n: int) -> Int[Tensor, "*shape"]:
        """The input position that stands at ``at``, which may lie in the padding; -1 for none."""
        if self.padding_mode == "circular":
            return at % n
        if self.padding_mode == "reflect":
            return (n - 1) - ((n - 1) - at.abs()).abs()
        if self.padding_mode == "replicate":
            return at.clamp(0, n - 1)
        return torch.where((at >= 0) & (at < n), at, -1)

    def _touched(self, tap: tuple[int, ...]) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
        """Flat output positions, and the flat input positions they see by this tap."""
        row = column = torch.zeros(1, dtype=torch.int64, device=self.weight.device)
        for dim, t in enumerate(tap):
            source = self.sources(dim)[:, t]
            seen = torch.nonzero(source >= 0).flatten()
            row = (row[:, None] * self.output_shape[1 + dim] + seen).flatten()
            column = (column[:, None] * self.input_size[dim] + source[seen]).flatten()
        return row, column

    def padded(self, dim: int) -> Int[Tensor, "padded"]:
        """The input position that stands at each position of the padded input along ``dim``; -1 for none."""
        n, (before, after) = self.input_size[dim], self.padding[dim]
        return self._inside(torch.arange(-before, n + after, device=self.weight.device), n)

    def _forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            x = F.pad(x, _for_pad(self.padding))
        else:
            for dim in range(len(self.kernel)):
                x = x.index_select(2 + dim, self.padded(dim))
        convolve = _CONV[len(self.kernel)]
        return convolve(x, self.weight, stride=self.stride, dilation=self.dilation, groups=self.groups)

    def _backward(self, y: Tensor) -> Tensor:
        spread = _CONV_TRANSPOSE[len(self.kernel)]
        padded = spread(y, self.weight, stride=self.stride, dilation=self.dilation, groups=self.groups)
        whole = [n + sum(pads) for n, pads in zip(self.input_size, self.padding, strict=True)]
        unseen = [
            (0, size - seen) for size, seen in zip(whole, padded.shape[2:], strict=True)
        ]  # by a stride's last step
        padded = F.pad(padded, _for_pad(unseen))
        if self.padding_mode == "zeros":
            return F.pad(padded, _for_pad([(-before, -after) for before, after in self.padding]))
        for dim, n in enumerate(self.input_size):
            gathered = padded.new_zeros(*padded.shape[: 2 + dim], n, *padded.shape[3 + dim :])
            padded = gathered.index_add(2 + dim, self.padded(dim), padded)
        return padded


def convolution(module: nn.Module, input_size: Sequence[int] | None) -> Convolution:
    """The operator of nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d, with its weights as they act.

    Args:
        module: the layer; pruning masks and parametrisations count.
        input_size: the spatial size of one input.

    Raises:
        ModelError: for any other module, without an input size or with one that is too small, and for weights that are
            NaN, infinite, complex or integer.

    >>> convolution(nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1), (32, 32)).output_shape
    (8, 16, 16)
    """
    if not isinstance(module, _DIRECT + _TRANSPOSED):
        raise ModelError(
            "a convolution must be nn.Conv1d, 2d, 3d or nn.ConvTranspose1d, 2d, 3d",
            type(module).__name__,
            "give one of these layers",
        )
    if input_size is None:
        raise ModelError(
            "a convolution is a linear operator only on inputs of a known size",
            "no input size",
            "give the spatial size of what the layer sees, for example (32, 32)",
        )
    weight = acting64(module, "weight")
    assert weight is not None  # every convolution has one
    return Convolution(
        weight=as_matrix(weight.flatten(1)).reshape(weight.shape),
        input_size=tuple(input_size),
        stride=tuple(module.stride),
        dilation=tuple(module.dilation),
        padding=_padding(module),
        groups=module.groups,
        transposed=isinstance(module, _TRANSPOSED),
        output_padding=tuple(module.output_padding) if isinstance(module, _TRANSPOSED) else (),
        padding_mode=_padding_mode(module.padding_mode),
    )


def _padding(module: nn.modules.conv._ConvNd) -> tuple[tuple[int, int], ...]:
    if module.padding == "valid":
        return ((0, 0),) * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((int(pad), int(pad)) for pad in module.padding)


def _padding_mode(mode: str) -> PaddingMode:
    known: PaddingMode
    for known in get_args(PaddingMode):
        if mode == known:
            return known
    raise ModelError(f"padding_mode must be one of {', '.join(get_args(PaddingMode))}", mode, "change the layer")


def _for_pad(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Pairs in the order of F.pad: the last dimension first."""
    return [number for pair in reversed(pads) for number in pair]
