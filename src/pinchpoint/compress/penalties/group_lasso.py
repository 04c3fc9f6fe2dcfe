"""Group lasso over rows, columns or attention heads: whole units become small together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pinchpoint.compress.penalties.base import Penalty, Touched, scaled_ratio
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.attention import attention
from pinchpoint.measure.operators import Operator
from pinchpoint.measure.spectrum import vector_norms

Over = Literal["rows", "columns", "heads"]


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """sum over groups of ||group||_2: few dominant units. The gradient of a group of zeros is zero.

    Args:
        strength: zero or more.
        include_head: also penalise the last layer (``rows`` and ``columns``).
        layers: patterns of layer names; with ``heads`` of attention modules.
        over: ``rows`` are neurons and filters. ``columns`` are input features, and for a convolution all weights that read
            one input channel. ``heads`` touches attention only, where a group is what goes when a head is removed: its
            rows of q, k and v and its columns of the output. Where several query heads share one key and value (grouped
            queries) they are one group.
        scale_invariant: divide each layer's sum by its ||W||_F: 1 (one group) ... sqrt(number of groups), unchanged by
            W -> c W.

    Source: M. Yuan, Y. Lin, Model selection and estimation in regression with grouped variables, JRSS B 68, 2006; the
    scale-invariant form from Barsbey et al. 2026 (theory.md, section 7).

    >>> GroupLasso(1.0).term(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item()
    5.0
    >>> GroupLasso(1.0, scale_invariant=True).term(torch.tensor([[30.0, 40.0], [0.0, 0.0]])).item()
    1.0
    """

    over: Over = "rows"
    scale_invariant: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in get_args(Over):
            raise ConfigError(f"a group lasso goes over {', '.join(get_args(Over))}", self.over, "choose one of them")

    def term(self, matrix: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Of groups laid out as rows."""
        norms: Tensor = _RowNorms.apply(matrix)  # type: ignore[no-untyped-call]
        return self._total(norms)

    def value(self, model: nn.Module) -> Float[Tensor, ""]:
        if self.over == "heads":
            return torch.stack([self._total(_head_norms(name, parts)) for name, parts in self._attention(model)]).sum()
        layers = self.touched(model)
        return torch.stack(
            [self.term(layer.matrix if self.over == "rows" else _columns(layer)) for layer in layers]
        ).sum()

    def names(self, model: nn.Module) -> list[str]:
        return [name for name, _ in self._attention(model)] if self.over == "heads" else super().names(model)

    def _total(self, norms: Float[Tensor, "groups"]) -> Float[Tensor, ""]:
        return scaled_ratio(norms.sum(), vector_norms(norms)) if self.scale_invariant else norms.sum()

    def _attention(self, model: nn.Module) -> list[tuple[str, list[Operator]]]:
        """Attention modules that the patterns name, as q, k, v and out."""
        found = dict(_attention_modules(model))
        if not found:
            raise ConfigError(
                "GroupLasso over heads needs attention", f"none in {type(model).__name__}", "use rows or columns"
            )
        if self.layers is not None:
            kept = self.matching([Touched(name, parts[0].module) for name, parts in found.items()])
            found = {layer.name: found[layer.name] for layer in kept}
        return list(found.items())


class _RowNorms(torch.autograd.Function):
    """``vector_norms`` in a third of the time, there and back: squares of float32 fit into float64 unscaled."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor) -> Tensor:
        if matrix.dtype == torch.float64:
            norms = vector_norms(matrix)
        else:
            norms = torch.linalg.vector_norm(matrix, dim=-1, dtype=torch.float64).to(matrix.dtype)
        ctx.save_for_backward(matrix, norms)
        return norms

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        matrix, norms = ctx.saved_tensors  # type: ignore[attr-defined]
        return scaled_ratio(matrix, norms[:, None]) * grad_outputs[0][:, None]


def _columns(layer: Touched) -> Float[Tensor, "channels size"]:
    """What reads one input channel, as a row."""
    return layer.by_input.flatten(0, 1).flatten(1)


def _attention_modules(model: nn.Module) -> Iterator[tuple[str, list[Operator]]]:
    for name, module in model.named_modules():
        if found := attention(name, module):
            yield name, found


def _head_norms(name: str, parts: list[Operator]) -> Float[Tensor, "heads"]:
    """||q, k, v and out of one head||_2, for each head."""
    groups = [operator.groups for operator in parts]
    heads = min(group.count for group in groups if group is not None)
    norms = []
    for operator in parts:
        weight = _weight(name, operator)
        norms.append(vector_norms((weight.T if operator.kind == "attention_out" else weight).reshape(heads, -1)))
    return vector_norms(torch.stack(norms, dim=1))


def _weight(name: str, operator: Operator) -> Tensor:
    """The stored matrix, which autograd can follow; the operator itself reads copies."""
    if len(operator.weights) != 1 or parametrize.is_parametrized(operator.module) or operator.module._forward_pre_hooks:
        raise ModelError(
            "a group lasso over heads needs attention weights that are stored as they act",
            f"computed ones in '{name}'",
            "remove the parametrisation or mask",
        )
    parameter, index, parts = operator.weights[0]
    return parameter.chunk(parts)[index]
