"""Spread control: the dominant neurons of a layer kept equally large."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pinchpoint.compress.penalties.base import LayerPenalty, scaled_ratio
from pinchpoint.errors import ConfigError
from pinchpoint.measure.compressibility import dominant_terms
from pinchpoint.measure.spectrum import vector_norms


@dataclass(frozen=True)
class SpreadControl(LayerPenalty):
    """Variance of the dominant row norms over the square of their mean, summed over layers.

    With nu the l1 norms of a layer's h rows (filters), of which the k = max(2, ceil(share h)) largest are dominant:

        variance(nu_(1) ... nu_(k)) / mean(nu_(1) ... nu_(k))^2        in [0, k - 1], unchanged by W -> c W

    It is 0 exactly where the spread 1 - nu_(k)/nu_(1) is 0 (theory.md, sections 2 and 8), and where there is one row, or
    nothing but zeros. The variance divides by k. Where nu_(k) = nu_(k+1) the gradient is a subgradient of one choice.

    Args:
        strength: zero or more.
        include_head: also penalise the last layer.
        layers: patterns of layer names.
        share: of the rows that count as dominant, in (0, 1].

    >>> import torch
    >>> SpreadControl(1.0).term(torch.tensor([[3.0], [-1.0], [0.5]])).item()  # mean 2, variance 1
    0.25
    """

    share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ConfigError("the share of dominant rows lies in (0, 1]", self.share, "the paper's is 0.05")

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        norms = vector_norms(matrix, 1)
        k = min(max(2, dominant_terms(self.share, len(norms))), len(norms))
        top = norms.topk(k, sorted=False).values
        mean = top.mean()
        return scaled_ratio(top - mean, mean).square().mean()
