"""Penalties on single weights: few of them large."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pinchpoint.compress.penalties.base import LayerPenalty, scaled_ratio
from pinchpoint.measure.spectrum import vector_norms


@dataclass(frozen=True)
class L1(LayerPenalty):
    """sum |w|: entrywise sparsity.

    >>> import torch
    >>> L1(2.0, include_head=True).term(torch.tensor([[1.0, -2.0]])).item()
    3.0
    """

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        return matrix.abs().sum()


@dataclass(frozen=True)
class Hoyer(LayerPenalty):
    """sum |w| / ||w||_2 over a layer's n weights: entrywise sparsity whatever their scale, 1 (one weight) ... sqrt(n).

    The ratio from which Hoyer's measure (sqrt(n) - ratio) / (sqrt(n) - 1) is made. A layer of zeros counts as 0. The same
    ratio of the lengths of rows is ``GroupLasso(scale_invariant=True)``.

    Source: P. O. Hoyer, Non-negative Matrix Factorization with Sparseness Constraints, JMLR 5, 2004, section 3.1; as a
    penalty on networks, H. Yang, W. Wen, H. Li, DeepHoyer, ICLR 2020 (who prefer its square).

    >>> import torch
    >>> Hoyer(1.0).term(torch.tensor([[1.0, -1.0], [1.0, 1.0]])).item()
    2.0
    """

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        entries = matrix.flatten()
        return scaled_ratio(entries.abs().sum(), vector_norms(entries))
