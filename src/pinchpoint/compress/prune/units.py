"""What is pruned: groups of units, each unit a slice of one tensor or of several.

A unit is what is kept or goes as a whole: a row of one layer, a filter with everything that is coupled to it, a head. Rows
and heads follow from the layers alone; ``graph`` finds the coupled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pinchpoint.compress.checks import tied
from pinchpoint.measure.attention import attention
from pinchpoint.measure.operators import Part
from pinchpoint.measure.weights import is_computed
from pinchpoint.records import Skipped

Unit = Literal["filters", "rows", "heads", "singular values", "entries"]
"""What a network is pruned by.

``filters``: rows of fully connected layers and convolutions with all that is coupled to them, decided together, so that
they can be removed. ``rows``: rows of each layer alone, which can be masked only. ``heads``: of attention.
``singular values``: each layer's matrix is truncated. ``entries``: single weights, masked.
"""

Weighted = nn.Linear | nn.modules.conv._ConvNd
"""Layers whose ``weight`` has rows."""

OUTPUTS = "its rows are the network's outputs"
"""Why the head stays."""


Stay = Mapping[str, Bool[Tensor, "_"]]
"""Which units of each group stay, by its name."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Row u of ``indices`` holds the positions in dimension ``dim`` of a tensor that belong to unit u."""

    tensor: str
    dim: int
    indices: Int[Tensor, "units each"]


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows (or columns) of a layer's weight whose size is the units' importance, and the biases of those rows."""

    layer: str
    weight: Slice
    bias: Slice | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are ranked among each other.

    Attributes:
        name: of the layer whose rows they are; of the first one, where several are coupled.
        units: how many there are.
        slices: what goes with them; tensors by their name in the state dict, or a module that selects channels, where
            dimension 0 is its outputs and 1 its inputs.
        scored: what the units are ranked by.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    scored: tuple[Scored, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """The layers it is ranked by."""
        return tuple(dict.fromkeys(part.layer for part in self.scored))


@dataclass(frozen=True)
class Found:
    """Groups that can be pruned, and layers that cannot, with the reason."""

    groups: tuple[Group, ...]
    left: tuple[Skipped, ...] = field(default=())


def prunable(model: nn.Module) -> tuple[dict[str, Weighted], list[Skipped]]:
    """Fully connected layers and convolutions whose weight is theirs alone; and the others, with the reason."""
    found: dict[str, Weighted] = {}
    left, shared = [], tied(model)
    for name, module in model.named_modules():
        if isinstance(module, Weighted):
            reason = unfit(module, shared)
            if reason is None:
                found[name] = module
            else:
                left.append(skipped(name, module, reason))
    return found, left


def unfit(module: Weighted, shared: Set[int]) -> str | None:
    """Why nothing can be taken out of a layer's weight, where it cannot; ``shared`` are the parameters of several layers."""
    if is_computed(module) or not isinstance(module.weight, nn.Parameter):
        return "its weight is computed from others; remove the parametrisation"
    if any(id(parameter) in shared for parameter in module.parameters(recurse=False)):
        return "it shares its weight with another layer"
    if module.weight.numel() == 0:
        return "it has no weights"
    return None if module.weight.is_floating_point() else "its weight is complex"


def skipped(name: str, module: nn.Module, reason: str) -> Skipped:
    """A layer that stays as it is."""
    numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return Skipped(name=name, kind=type(module).__name__, reason=reason, parameters=numbers)


def rows(model: nn.Module, folds: dict[str, str], head: str, keep: Sequence[str]) -> Found:
    """The rows of each layer alone, with their biases and with the batch norm that alone follows.

    >>> found = rows(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), {}, head="2", keep=())
    >>> [(group.name, group.units) for group in found.groups], [left.reason for left in found.left]
    ([('0', 3)], ["its rows are the network's outputs"])
    """
    norms = {maker: norm for norm, maker in folds.items()}
    modules, left = prunable(model)
    groups = []
    for name, module in modules.items():
        if name in keep or name == head:
            left.append(skipped(name, module, "named in keep" if name in keep else OUTPUTS))
            continue
        if isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups > 1:
            left.append(skipped(name, module, "a grouped transposed convolution has no whole rows"))
            continue
        dim = int(isinstance(module, nn.modules.conv._ConvNd) and module.transposed)
        units = torch.arange(module.weight.shape[dim])[:, None]
        weight = Slice(f"{name}.weight", dim, units)
        bias = Slice(f"{name}.bias", 0, units) if module.bias is not None else None
        slices = [weight, *([bias] if bias else [])]
        if name in norms:
            norm = model.get_submodule(norms[name])
            slices += [Slice(f"{norms[name]}.{key}", 0, units) for key, _ in norm.named_parameters(recurse=False)]
        groups.append(Group(name, len(units), tuple(slices), (Scored(name, weight, bias),)))
    return Found(tuple(groups), tuple(left))


def heads(model: nn.Module, keep: Sequence[str]) -> Found:
    """Whole heads of every attention: their rows of q, k and v, and their columns of the output projection.

    >>> found = heads(nn.ModuleDict({"attention": nn.MultiheadAttention(8, num_heads=4)}), keep=())
    >>> [(group.name, group.units, len(group.slices)) for group in found.groups]
    [('attention', 4, 7)]
    """
    groups, left = [], []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        operators = attention(name, module)
        if not operators:
            continue
        counts = {operator.groups.count for operator in operators if operator.groups}
        if name in keep or len(counts) > 1:
            reason = "named in keep" if name in keep else "several heads share one key and value"
            left.append(skipped(name, module, reason))
            continue
        (count,) = counts
        slices, scored = [], []
        for operator in operators:
            assert operator.groups is not None
            axis = int(operator.groups.axis == "columns")
            weight = _blocks(names[id(operator.weights[0][0])], operator.weights[0], axis, count)
            biased = operator.biases and not axis  # a bias of the output projection belongs to no head
            bias = _blocks(names[id(operator.biases[0][0])], operator.biases[0], 0, count) if biased else None
            scored.append(Scored(operator.name, weight, bias))
            slices += [weight, *([bias] if bias else [])]
        table = getattr(module, "relative_position_bias_table", None)  # Swin: one column a head
        if isinstance(table, nn.Parameter) and table.ndim == 2 and table.shape[1] == count:
            slices.append(Slice(names[id(table)], 1, torch.arange(count)[:, None]))
        groups.append(Group(name, count, tuple(slices), tuple(scored)))
    return Found(tuple(groups), tuple(left))


def _blocks(name: str, part: Part, dim: int, count: int) -> Slice:
    """Equal blocks, one a head, of one part of a tensor."""
    parameter, index, parts = part
    size = parameter.shape[dim] // parts
    return Slice(name, dim, index * size + torch.arange(size).reshape(count, -1))
