"""Certifying ||A||_2 <= b for the operator A of a whole convolution: b^2 I - A'A has a Cholesky factor.

Cut along the first spatial dimension, A consists of few different blocks, one a tap: each is the matrix of a convolution
with one dimension less. So A'A is banded, its blocks are sums of products of two taps, and neither A nor A'A is ever
written out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.measure.convolution.operator import Convolution
from pinchpoint.measure.convolution.symbol import rounding


@dataclass(frozen=True, eq=False)
class SlicedGram:
    """A'A of a direct convolution, or A A' where that is smaller, in slices along the first spatial dimension.

    Attributes:
        conv: a direct convolution with weights of a magnitude near 1.
    """

    conv: Convolution

    @cached_property
    def _slice_shape(self) -> tuple[int, int]:
        """Rows and columns of one tap's block, a group."""
        inner = self._inner(0)
        rows, columns = inner.output_shape[0] // inner.groups, inner.input_shape[0] // inner.groups
        for out, size in zip(inner.output_shape[1:], inner.input_size, strict=True):
            rows, columns = rows * out, columns * size
        return rows, columns

    @cached_property
    def _of_outputs(self) -> bool:
        rows, columns = self._slice_shape
        return rows * self.conv.output_shape[1] < columns * self.conv.input_size[0]

    @cached_property
    def _links(self) -> list[dict[int, list[int]]]:
        """For each slice of the Gram matrix: the slices on the other side that it meets, and by which taps."""
        links: list[dict[int, list[int]]] = [
            {} for _ in range(self.conv.output_shape[1] if self._of_outputs else self.conv.input_size[0])
        ]
        for output, sources in enumerate(self.conv.sources(0).tolist()):
            for tap, source in enumerate(sources):
                if source >= 0:
                    mine, other = (output, source) if self._of_outputs else (source, output)
                    links[mine].setdefault(other, []).append(tap)
        return links

    @cached_property
    def _firsts(self) -> list[int]:
        """For each slice, the first one with which it shares a slice on the other side."""
        first_of: dict[int, int] = {}
        for mine, others in enumerate(self._links):
            for other in others:
                first_of.setdefault(other, mine)
        return [min([mine, *(first_of[other] for other in others)]) for mine, others in enumerate(self._links)]

    @cached_property
    def _side(self) -> int:
        return self._slice_shape[0 if self._of_outputs else 1]

    @property
    def cost(self) -> float:
        """Floating point operations of one call of ``upper``, roughly."""
        rows, columns = self._slice_shape
        widths = [mine - first for mine, first in enumerate(self._firsts)]
        factor = self._side**3 * sum(width**2 + 2 * width + 1 / 3 for width in widths)
        products = rows * columns * self._side * self.conv.kernel[0] * (self.conv.kernel[0] + 1)
        return float(self.conv.groups * (factor + products))

    @property
    def numbers(self) -> float:
        """Numbers held at once, roughly."""
        rows, columns = self._slice_shape
        taps = self.conv.kernel[0]
        band = 1 + max(mine - first for mine, first in enumerate(self._firsts))
        return float(self.conv.groups * (taps * rows * columns + self._side**2 * (taps * (taps + 1) / 2 + band**2 + 4)))

    def upper(self, bound: float) -> float | None:
        """``bound``, raised by what rounding may hide, if that is certified to be at least ||A||_2; else None."""
        limit, trace = bound**2, 0.0
        factor: list[dict[int, Tensor]] = []
        for mine, first in enumerate(self._firsts):
            row: dict[int, Tensor] = {}
            for at in range(first, mine):
                rest = -self._entry(mine, at)
                for before in range(max(first, self._firsts[at]), at):
                    rest -= row[before] @ factor[at][before].mT
                row[at] = torch.linalg.solve_triangular(factor[at][at].mT, rest, upper=True, left=False)
            diagonal = self._entry(mine, mine)
            trace += float(diagonal.diagonal(dim1=-2, dim2=-1).sum())
            rest = -diagonal
            rest.diagonal(dim1=-2, dim2=-1).add_(limit)
            for block in row.values():
                rest -= block @ block.mT
            row[mine], failed = torch.linalg.cholesky_ex(rest)
            if bool(failed.any()):
                return None
            factor.append(row)
            needed = min(self._firsts[mine + 1 :], default=mine)
            for done in factor[:needed]:
                done.clear()
        whole = self._side * len(self._links)
        terms = sum(self._slice_shape) * max(self.conv.input_size[0], self.conv.output_shape[1])
        return float((limit + rounding(whole, terms, limit, trace)) ** 0.5)

    def _inner(self, tap: int) -> Convolution:
        conv = self.conv
        return replace(
            conv,
            weight=conv.weight[:, :, tap],
            input_size=conv.input_size[1:],
            stride=conv.stride[1:],
            dilation=conv.dilation[1:],
            padding=conv.padding[1:],
        )

    @cached_property
    def _taps(self) -> list[Float[Tensor, "groups rows columns"]]:
        blocks = [self._inner(tap).blocks() for tap in range(self.conv.kernel[0])]
        return [block.mT for block in blocks] if self._of_outputs else blocks

    @cached_property
    def _products(self) -> dict[tuple[int, int], Tensor]:
        return {}

    def _product(self, tap: int, other: int) -> Tensor:
        if tap > other:
            return self._product(other, tap).mT
        if (tap, other) not in self._products:
            self._products[tap, other] = self._taps[tap].mT @ self._taps[other]
        return self._products[tap, other]

    def _entry(self, mine: int, at: int) -> Tensor:
        """One block of the Gram matrix."""
        total = self.conv.weight.new_zeros(self.conv.groups, self._side, self._side)
        for other, taps in self._links[mine].items():
            for tap in taps:
                for second in self._links[at].get(other, ()):
                    total += self._product(tap, second)
        return total
