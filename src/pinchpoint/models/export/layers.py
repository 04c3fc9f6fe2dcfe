"""Which node of an exported graph is a layer, and the module that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

_CONVOLUTIONS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "torch.ops.aten.conv1d": (nn.Conv1d, 1),
    "torch.ops.aten.conv2d": (nn.Conv2d, 2),
    "torch.ops.aten.conv3d": (nn.Conv3d, 3),
    "torch.ops.aten.conv_transpose1d": (nn.ConvTranspose1d, 1),
    "torch.ops.aten.conv_transpose2d": (nn.ConvTranspose2d, 2),
    "torch.ops.aten.conv_transpose3d": (nn.ConvTranspose3d, 3),
}
_NORMS: dict[int, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


class Layer(NamedTuple):
    """A module in place of a node.

    Attributes:
        path: where it stands in the network.
        key: what makes it differ from another layer of the same weights.
        module: with its weights.
        x: its input.
    """

    path: str
    key: tuple[Any, ...]
    module: nn.Module
    x: fx.Node


def layer_of(target: str, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor], ndim: int) -> Layer | None:
    """The layer, or None where the node is none: its weights are computed, or it has none of its own.

    Args:
        target: the name of the node's operation.
        inputs: its arguments by name, tensors as nodes.
        tensors: parameters and buffers by name.
        ndim: the number of dimensions of its input, batch included.
    """
    held = {
        name: str(value.target)
        for name, value in inputs.items()
        if isinstance(value, fx.Node) and value.op == "get_attr"
    }
    owns = {name: tensors[path] for name, path in held.items()}
    x = inputs.get("input")
    rest = {name: value for name, value in inputs.items() if name not in held and name != "input"}
    if not isinstance(x, fx.Node) or "input" in held or any(isinstance(value, fx.Node) for value in rest.values()):
        return None
    if any(isinstance(item, fx.Node) for value in rest.values() if isinstance(value, list) for item in value):
        return None
    module = _module(target, owns, rest, ndim)
    if module is None:
        return None
    for name, tensor in owns.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    named = "weight" if "weight" in held else "running_mean"
    return Layer(_path(held[named], named), (target, repr(rest), *sorted(held.items())), module, x)


def _module(target: str, owns: Mapping[str, Tensor], rest: Mapping[str, Any], ndim: int) -> nn.Module | None:
    """Without its tensors; None where these are not as the module has them."""
    kind = target.rpartition(".")[0]
    weight, bias = owns.get("weight"), "bias" in owns
    affine = weight is not None and bias
    with torch.device("meta"):
        if kind == "torch.ops.aten.linear" and isinstance(weight, nn.Parameter) and weight.ndim == 2:
            return nn.Linear(weight.shape[1], weight.shape[0], bias)
        if kind in _CONVOLUTIONS and isinstance(weight, nn.Parameter):
            make, dims = _CONVOLUTIONS[kind]
            groups = rest.get("groups", 1)
            if weight.ndim != dims + 2 or 0 in weight.shape or groups < 1:
                return None
            across, along = (weight.shape[1] * groups, weight.shape[0])
            channels = (along, across) if "transpose" in kind else (across, along)
            options = {name: _tuple(value, dims) for name, value in rest.items() if name not in ("groups", "bias")}
            return make(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias, **options)
        if kind == "torch.ops.aten.batch_norm" and {"running_mean", "running_var"} <= owns.keys() and ndim in _NORMS:
            if affine != (weight is not None or bias):
                return None
            size = len(owns["running_mean"])
            norm = _NORMS[ndim](size, eps=rest.get("eps", 1e-5), momentum=rest.get("momentum", 0.1), affine=affine)
            norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device="cpu")
            return norm
        if kind == "torch.ops.aten.layer_norm" and affine:
            return nn.LayerNorm(rest["normalized_shape"], eps=rest.get("eps", 1e-5))
        if kind == "torch.ops.aten.group_norm" and affine and weight is not None and rest["num_groups"] > 0:
            return nn.GroupNorm(rest["num_groups"], len(weight), eps=rest.get("eps", 1e-5))
    return None


def _tuple(value: Any, dims: int) -> Any:
    """One number for every dimension; words ('same', 'valid') stay."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list) else (value,)
    return values * dims if len(values) == 1 else values


def _path(name: str, leaf: str) -> str:
    """Of the module that holds it: ``fc`` for ``fc.weight``, ``attn.in_proj`` for ``attn.in_proj_weight``."""
    parent, _, own = name.rpartition(".")
    if own == leaf:
        return parent or "layer"
    own = own.removesuffix(f"_{leaf}")
    return f"{parent}.{own}" if parent else own
