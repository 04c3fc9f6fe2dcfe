"""Interlayer alignment as a penalty: how far the large rows of one layer are what the next layer reads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.compress.penalties.base import Penalty, Touched, scaled_ratio
from pinchpoint.errors import ConfigError
from pinchpoint.measure.spectrum import vector_norms

Norm = Literal["linf", "l2"]
Pair = tuple[Touched, Touched]


@dataclass(frozen=True)
class AlignmentPenalty(Penalty):
    """A smooth upper bound on A_p, up to a known factor, summed over adjacent layers; unchanged by W -> c W of any layer.

    With W1 (h x d) before the activation and W2 (m x h) after it, for every diagonal D with entries in [0, 1]:

        linf   ||W2 D W1||_inf <= max_i (|W2| nu)_i,   nu_j = ||row j of W1||_1
               value = || |W2| nu ||_q / ( || |W2| 1 ||_q ||nu||_q )                    in (0, 1]
        l2     ||W2 D W1||_F <= sum_j c_j r_j,   c_j = ||column j of W2||_2,  r_j = ||row j of W1||_2
               value = <c, r> / (||c||_2 ||r||_2) = <c, r> / (||W2||_F ||W1||_F)        in [0, 1]

    The l_q norms (q = 8) stand for maxima. With them the first line reads A_inf <= (m h)^(1/q) value, where A_inf is that
    of theory.md, section 4, with nothing left out (R = 0), and value <= m^(1/q) max_i (|W2| nu)_i / (||W2||_inf ||W1||_inf).
    The second bounds the Frobenius norm of the product, which is at least its spectral norm, by value * ||W2||_F ||W1||_F.
    Where a layer is all zeros the value is 0.

    Convolutions: a row is a filter with all its positions, a column all weights that read one channel. The first line then
    holds for the operators too, whatever units are off at which positions. Layers are adjacent where one follows the other
    in the order of registration and reads as many channels as the other makes; a fully connected layer may also read each
    channel at several positions (after ``Flatten``). Residual branches are seen that way only: both convolutions of a block
    are a pair, and so are a block's last and the next block's first. Batch norms in between are not taken in.

    Args:
        strength: zero or more.
        include_head: also the pair of the last hidden layer and the head.
        layers: patterns of layer names; pairs of neighbours of which both match.
        norm: ``linf`` or ``l2``.

    >>> pair = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> pair[0].weight.data, pair[2].weight.data = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 5.0]])
    >>> AlignmentPenalty(1.0, include_head=True)(pair).item()  # the second layer reads what the first never says
    0.0
    """

    norm: Norm = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in get_args(Norm):
            raise ConfigError(f"norm must be one of {', '.join(get_args(Norm))}", self.norm, "write linf or l2")

    def pairs(self, model: nn.Module) -> list[Pair]:
        """The adjacent layers.

        Raises:
            ConfigError: where there are none.
        """
        found = self.touched(model)
        every = {layer.name: layer for layer in found}
        pairs = [pair for pair in itertools.pairwise(every.values()) if _fit(*pair)]
        if not pairs:
            raise ConfigError(
                "AlignmentPenalty needs two adjacent layers, the second reading what the first makes",
                f"{', '.join(every)}",
                "use include_head=True or a deeper model",
            )
        return pairs

    def value(self, model: nn.Module) -> Float[Tensor, ""]:
        return torch.stack([self.pair_term(*pair) for pair in self.pairs(model)]).sum()

    def names(self, model: nn.Module) -> list[str]:
        return [f"{first.name} -> {second.name}" for first, second in self.pairs(model)]

    def pair_term(self, first: Touched, second: Touched) -> Float[Tensor, ""]:
        """Of one pair."""
        return _linf(first, second) if self.norm == "linf" else _l2(first, second)


_Q = 8


def _fit(first: Touched, second: Touched) -> bool:
    made, read = len(first.matrix), _channels(second)
    dense = not isinstance(second.module, nn.modules.conv._ConvNd)
    return made == read or (dense and isinstance(first.module, nn.modules.conv._ConvNd) and read % made == 0)


def _channels(layer: Touched) -> int:
    return layer.by_input.shape[0] * layer.by_input.shape[1]


def _by_channel(second: Touched, made: int) -> Float[Tensor, "groups per_group m_per_group positions"]:
    """The second layer's weights by the channel of the first that they read."""
    weights = second.by_input
    if weights.shape[0] * weights.shape[1] == made:
        return weights
    flat: Tensor = weights.unflatten(1, (made, -1)).squeeze(-1).transpose(2, 3)  # positions of a flattened image
    return flat


def _linf(first: Touched, second: Touched) -> Float[Tensor, ""]:
    made = vector_norms(first.matrix, 1)
    read = _by_channel(second, len(made)).abs().sum(-1).transpose(1, 2)  # groups x outputs x channels of the group
    heard = (read @ made.unflatten(0, (len(read), -1))[..., None]).flatten()
    below = vector_norms(read.sum(-1).flatten(), _Q) * vector_norms(made, _Q)
    return scaled_ratio(vector_norms(heard, _Q), below)


def _l2(first: Touched, second: Touched) -> Float[Tensor, ""]:
    made = vector_norms(first.matrix)
    read = vector_norms(_by_channel(second, len(made)).flatten(0, 1).flatten(1))
    return scaled_ratio((made * read).sum(), vector_norms(made) * vector_norms(read))
