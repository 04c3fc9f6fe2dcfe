"""Penalties that make a network compressible while it trains: callables on a model, composable.

``describe`` says which layers a penalty touches. The head (last linear layer) is left out of structured penalties by
default, and so is an input convolution, as in the paper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ConfigError
from pinchpoint.measure.layers import linear_modules, weight_matrix
from pinchpoint.measure.spectrum import vector_norms


@dataclass(frozen=True)
class Penalty(ABC):
    """strength * sum over layers of ``term(W)``. Penalties add up with ``+``.

    Args:
        strength: zero or more.
        include_head: also penalise the last linear layer.
    """

    strength: float
    include_head: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ConfigError(
                "a penalty's strength must be finite, zero or more", self.strength, "use 0 for no penalty"
            )

    @abstractmethod
    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        """The penalty of one layer's matrix, differentiable."""

    def modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Names and modules of the layers it touches.

        Raises:
            ConfigError: where it touches none.
        """
        found = linear_modules(model)
        if not self.include_head:
            found = found[:-1]
        if found and isinstance(found[0][1], nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found = found[1:]
        if not found:
            raise ConfigError(
                f"{type(self).__name__} must touch at least one layer",
                "none",
                "use include_head=True or a deeper model",
            )
        return found

    def __call__(self, model: nn.Module) -> Float[Tensor, ""]:
        terms = [self.term(_matrix(module)) for _, module in self.modules(model)]
        return self.strength * torch.stack(terms).sum()

    def describe(self, model: nn.Module) -> str:
        """One line: the penalty, its strength and its layers."""
        return f"{type(self).__name__}({self.strength:g}) on {', '.join(name for name, _ in self.modules(model))}"

    def __add__(self, other: Penalty | Sum) -> Sum:
        return Sum((self, *(other.parts if isinstance(other, Sum) else (other,))))


@dataclass(frozen=True)
class Sum:
    """Several penalties added up."""

    parts: Sequence[Penalty]

    def __call__(self, model: nn.Module) -> Float[Tensor, ""]:
        return torch.stack([part(model) for part in self.parts]).sum()

    def describe(self, model: nn.Module) -> str:
        """One line a part."""
        return "\n".join(part.describe(model) for part in self.parts)

    def __add__(self, other: Penalty | Sum) -> Sum:
        return Sum((*self.parts, *(other.parts if isinstance(other, Sum) else (other,))))


@dataclass(frozen=True)
class L1(Penalty):
    """sum |w|: entrywise sparsity.

    >>> L1(2.0, include_head=True).term(torch.tensor([[1.0, -2.0]])).item()
    3.0
    """

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        return matrix.abs().sum()


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """sum_i ||w_i||_2 over rows (filters): few dominant neurons. The gradient of a zero row is zero.

    >>> GroupLasso(1.0).term(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item()
    5.0
    """

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        return vector_norms(matrix).sum()


@dataclass(frozen=True)
class NuclearNorm(Penalty):
    """sum of singular values: few dominant directions.

    The gradient is the polar factor U V', taken from the same SVD that gives the value, so the SVD is never
    differentiated. Singular values below float rounding contribute no direction.

    >>> round(NuclearNorm(1.0).term(torch.diag(torch.tensor([3.0, 4.0]))).item(), 5)
    7.0
    """

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        value: Tensor = _Nuclear.apply(matrix)  # type: ignore[no-untyped-call]
        return value


class _Nuclear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor) -> Tensor:
        wide = matrix if matrix.dtype == torch.float64 else matrix.float()  # there is no SVD in half precision
        u, sigma, vh = torch.linalg.svd(wide, full_matrices=False)
        seen = sigma > sigma.amax() * max(matrix.shape) * torch.finfo(matrix.dtype).eps
        ctx.save_for_backward((u[:, seen] @ vh[seen]).to(matrix.dtype))
        total: Tensor = sigma.sum().to(matrix.dtype)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (polar,) = ctx.saved_tensors  # type: ignore[attr-defined]
        result: Tensor = grad_outputs[0] * polar
        return result


def _matrix(module: nn.Module) -> Tensor:
    matrix = weight_matrix(module)
    assert matrix is not None  # linear_modules lists only modules that have one
    return matrix
