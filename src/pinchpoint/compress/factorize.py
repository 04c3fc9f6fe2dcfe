"""Low-rank layers: W = A B with A of shape h x r and B of shape r x d."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import weight_matrix
from pinchpoint.measure.spectrum import as_matrix


class LowRankLinear(nn.Module):
    """A fully connected layer of rank at most r, y = A (B x) + b.

    A and B start so that A B has entries of the variance ``nn.Linear`` starts with.

    Args:
        in_features: d.
        out_features: h.
        rank: r, 1 ... min(h, d).
        bias: whether there is one.

    Raises:
        ModelError: where the rank is out of range.

    >>> LowRankLinear(6, 4, rank=2)(torch.zeros(3, 6)).shape
    torch.Size([3, 4])
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        check_rank(rank, out_features, in_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        # nn.Linear draws from U(-1/sqrt(d), 1/sqrt(d)), variance 1/(3d); r products of variance v^2 sum to r v^2.
        bound = math.sqrt(3.0) * (1.0 / (3.0 * in_features * rank)) ** 0.25
        self.a = nn.Parameter(torch.empty(out_features, rank).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(rank, in_features).uniform_(-bound, bound))
        limit = 1.0 / math.sqrt(in_features)
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-limit, limit)) if bias else None

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch h"]:
        return nn.functional.linear(nn.functional.linear(x, self.b), self.a, self.bias)

    def weight_matrix(self) -> Float[Tensor, "h d"]:
        """A B, differentiable."""
        return self.a @ self.b

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def truncate(linear: nn.Linear, rank: int) -> LowRankLinear:
    """The best rank-r approximation of a trained layer (Eckart-Young), sharing sqrt(sigma) between A and B.

    >>> linear = nn.Linear(5, 4)
    >>> bool(torch.allclose(truncate(linear, 4).weight_matrix(), linear.weight, atol=1e-5))
    True
    """
    check_rank(rank, linear.out_features, linear.in_features)
    matrix = weight_matrix(linear)
    assert matrix is not None
    u, sigma, vh = torch.linalg.svd(as_matrix(matrix), full_matrices=False)
    root = sigma[:rank].sqrt()
    low = LowRankLinear(linear.in_features, linear.out_features, rank, bias=linear.bias is not None)
    low = low.to(device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        low.a.copy_(u[:, :rank] * root)
        low.b.copy_(root[:, None] * vh[:rank])
        if low.bias is not None:
            low.bias.copy_(linear.bias)
    return low


def check_rank(rank: int, h: int, d: int) -> None:
    """Refuse a rank outside 1 ... min(h, d)."""
    if not 1 <= rank <= min(h, d):
        raise ModelError(f"the rank of a {h} x {d} layer lies in 1 ... {min(h, d)}", rank, "choose one in that range")
