"""Following an advice: a changed copy of a model, from an action that a program can read.

``clip``            singular values at ``factor`` times their median; with ``keep_frobenius`` then scaled back to ||W||_F
``rank floor``      ``rank`` singular values at least: those that are missing get the median of the others; ||W||_F is kept
``frobenius ball``  ||W||_F <= ``radius``, by scaling
``prune``           ``ratio`` of all ``unit`` by ``allocation``, see ``compress.prune``
``leave``           nothing

Convolutions are changed as banks of filters, group by group. There clipping is a contraction that mixes the filters of a
group after the convolution, so that no norm of the convolution itself rises either; scaling back may undo that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.compress.lowrank import LowRankConv2d, LowRankLinear, truncate
from pinchpoint.compress.prune import prune
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.layers import Layer, layers
from pinchpoint.measure.ranks import numerical_rank
from pinchpoint.measure.weights import computed_tensors

Action = Mapping[str, Any]
"""``kind`` and what that kind needs; plain data."""

_NEEDS = {
    "clip": ("layer", "factor"),
    "rank floor": ("layer", "rank"),
    "frobenius ball": ("layer", "radius"),
    "prune": ("ratio", "input_shape"),
    "leave": (),
}
_PRESENT = 1e-6
"""Relative to the largest: smaller singular values are rounding errors of float32."""
_WRITTEN = 1e-2
"""Relative difference between a matrix and what a layer made of it, from which on it was not written: half precision's."""


def apply(model: nn.Module, action: Action) -> nn.Module:
    """A copy of the model with the action done. It is meant to be fine-tuned: batch norms still have the old statistics.

    Raises:
        ConfigError: for an action that is none, or a number out of range.
        ModelError: where the layer is not there, or computes its weights from others.

    >>> model = nn.Sequential(nn.Linear(3, 3, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([9.0, 2.0, 1.0])))
    >>> clipped = apply(model, {"kind": "clip", "layer": "0", "factor": 1.5, "keep_frobenius": False})
    >>> clipped[0].weight.diagonal().tolist()
    [3.0, 2.0, 1.0]
    """
    kind = _checked(action)
    if kind == "prune":
        how = {key: action[key] for key in ("unit", "allocation", "criterion", "keep") if key in action}
        return prune(model, action["ratio"], input_shape=tuple(action["input_shape"]), **how).model
    copied = copy.deepcopy(model, computed_tensors(model))
    if kind == "leave":
        return copied
    layer = next((one for one in layers(copied) if one.name == action["layer"]), None)
    if layer is None or layer.diagonal is not None:
        raise ModelError("an action names a layer of the model", action["layer"], "see pinchpoint profile for names")
    if kind == "clip":
        changed = clipped(layer.matrix, _positive(action, "factor"), _groups(layer), action.get("keep_frobenius", True))
    elif kind == "rank floor":
        changed = raised(layer.matrix, int(_positive(action, "rank")))
    else:
        size = float(torch.linalg.matrix_norm(layer.matrix))
        changed = layer.matrix * min(1.0, _positive(action, "radius") / size) if size > 0 else layer.matrix
    return _written(copied, layer, changed)


def clipped(
    matrix: Float[Tensor, "h d"], factor: float, groups: int = 1, keep_frobenius: bool = True
) -> Float[Tensor, "h d"]:
    """Singular values cut off at ``factor`` times the median of those that are not zero; ||W||_2 never rises.

    Also with ||W||_F kept: min(s, t) / t >= s / s_1 for every singular value s, so that t / ||min(s, t)|| <= s_1 / ||s||.

    >>> clipped(torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)), 1.0, keep_frobenius=False).diag().tolist()
    [1.0, 1.0, 1.0]
    """
    blocks = matrix.unflatten(0, (groups, -1))
    wide = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)  # of a large matrix ten times as fast as its SVD
    sigma = squares.clamp(min=0.0).sqrt()
    present = sigma[sigma > _PRESENT * sigma.max()]
    if len(present) == 0:
        return matrix
    limit = factor * float(present.quantile(0.5))
    lost = torch.where(sigma > limit, 1.0 - limit / sigma, 0.0)
    wide = wide - (vectors * lost[:, None, :]) @ (vectors.mT @ wide)
    cut: Tensor = (wide if blocks.shape[1] <= blocks.shape[2] else wide.mT).flatten(0, 1)
    return cut * (matrix.norm() / cut.norm()) if keep_frobenius else cut


def raised(matrix: Float[Tensor, "h d"], rank: int) -> Float[Tensor, "h d"]:
    """A matrix of that rank at least and the same ||W||_F; its new directions are those an SVD adds.

    >>> singular = raised(torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64), 2).diag().abs()
    >>> singular.square().round(decimals=9).tolist()
    [2.0, 2.0]
    """
    h, d = matrix.shape
    if rank > min(h, d):
        raise ConfigError(f"the rank of a {h} x {d} layer is at most {min(h, d)}", rank, "lower it")
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    present = numerical_rank(sigma, _PRESENT)
    if not 0 < present < rank:
        return matrix
    floor = sigma.clone()
    floor[present:rank] = sigma[:present].median()
    whole: Tensor = (u * (floor * (sigma.norm() / floor.norm()))) @ vh
    return whole


def _groups(layer: Layer) -> int:
    return layer.module.groups if isinstance(layer.module, nn.modules.conv._ConvNd) else 1


def _written(model: nn.Module, layer: Layer, matrix: Float[Tensor, "h d"]) -> nn.Module:
    """The model, whose layer now has this matrix."""
    module = layer.module
    if isinstance(module, LowRankLinear | LowRankConv2d):
        plain = module.dense()
        plain.weight.data.copy_(matrix.reshape(plain.weight.shape))
        rank = max(module.rank, numerical_rank(torch.linalg.svdvals(matrix), _PRESENT))
        return _replaced(model, module, truncate(plain, rank))
    with torch.no_grad():
        _rows(layer).copy_(_as_stored(layer, matrix))
    now = layer.matrix
    if float((now - matrix).norm()) > _WRITTEN * float(matrix.norm()):
        raise ModelError("a change needs a layer that owns its weights", layer.name, "remove the parametrisation")
    return model


def _rows(layer: Layer) -> Tensor:
    """The part of a parameter that holds the layer's weights."""
    module, rows = layer.module, layer.shape[0]
    if layer.kind == "projection":
        return getattr(module, layer.name.rpartition(".")[2]).T  # type: ignore[no-any-return]
    if layer.kind not in ("attention_q", "attention_k", "attention_v"):
        return module.weight  # type: ignore[return-value]
    letter = layer.kind[-1]
    weight: Any = module.weight if isinstance(module, nn.Linear) else getattr(module, "in_proj_weight", None)
    if weight is None:
        weight = getattr(module, f"{letter}_proj_weight")
    parts = len(weight) // rows
    place = "qkv".index(letter) - (3 - parts) if parts > 1 else 0
    return weight[place * rows : (place + 1) * rows]  # type: ignore[no-any-return]


def _as_stored(layer: Layer, matrix: Float[Tensor, "h d"]) -> Tensor:
    module, shape = layer.module, _rows(layer).shape
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:  # stored as in x out/groups x kernel
        blocks = matrix.view(module.groups, -1, shape[0] // module.groups, *shape[2:])
        return blocks.transpose(1, 2).reshape(shape)
    return matrix.reshape(shape)


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    if model is old:
        return new
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
    return model


def _checked(action: Action) -> str:
    kind = action.get("kind")
    if kind not in _NEEDS:
        raise ConfigError(f"an action's kind is one of {', '.join(_NEEDS)}", kind, "take an advice's action as it is")
    for key in _NEEDS[kind]:
        if key not in action:
            raise ConfigError(f"the action '{kind}' needs {', '.join(_NEEDS[kind])}", dict(action), f"give {key}")
    return str(kind)


def _positive(action: Action, key: str) -> float:
    value = action[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"the {key} of the action '{action['kind']}' must be positive and finite", value, "try 2")
    return float(value)
