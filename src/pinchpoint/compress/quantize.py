"""Post-training quantisation of weights, as a control: fewer values instead of fewer weights, columns or directions.

Symmetric and uniform, rounding to nearest, no calibration data (R. Krishnamoorthi, Quantizing deep convolutional networks
for efficient inference, 2018, section 2). Weights stay floating point numbers: a forward pass costs what it did, and only
their values change.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.compress.prune.units import skipped
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.forward import check_weights
from pinchpoint.measure.layers import HasMatrix, linear_modules
from pinchpoint.measure.weights import computed_tensors, is_computed
from pinchpoint.records import Quantization, QuantizedLayer, Skipped

Per = Literal["channel", "tensor"]
"""What shares a scale: each row of a matrix and each filter, or the whole tensor."""

_MOST_BITS = 16  # 24 bits of a float32 hold its levels with room to spare


def quantize(
    model: nn.Module, bits: int, *, per: Per = "channel", include_head: bool = True
) -> tuple[nn.Module, Quantization]:
    """A copy of the model whose weights take at most 2^bits - 1 values a scale, zero among them.

    Fully connected layers and convolutions are quantised, low-rank layers factor by factor; biases, batch norms and whatever
    else there is keep their values. Zeros stay zero, so what was pruned stays pruned. Doing it twice changes nothing more.

    Args:
        model: any module.
        bits: 2 ... 16.
        per: what shares a scale.
        include_head: also the last layer.

    Returns:
        The copy, and what was done to which layer.

    Raises:
        ConfigError: for bits out of range and an unknown ``per``.
        ModelError: where no layer can be quantised, or a weight is not finite.

    >>> model = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[0.9, -0.4, 0.1]]))
    >>> coarse, report = quantize(model, 2)
    >>> (10 * coarse[0].weight.data).round().int().tolist(), report.levels, round(report.layers[0].step, 3)
    ([[9, 0, 0]], 3, 0.9)
    """
    if not 2 <= bits <= _MOST_BITS:
        raise ConfigError(f"bits must lie in 2 ... {_MOST_BITS}", bits, "try 8")
    if per not in get_args(Per):
        raise ConfigError(f"per must be {' or '.join(get_args(Per))}", per, "use channel")
    check_weights(model)
    coarse = copy.deepcopy(model, computed_tensors(model))
    done: list[QuantizedLayer] = []
    left: list[Skipped] = []
    found = linear_modules(coarse)
    for name, module in found:
        reason = "it is the head" if name == found[-1][0] and not include_head else _unfit(module)
        if reason is None:
            done.append(_quantize_layer(name, module, bits, per))
        else:
            left.append(skipped(name, module, reason))
    if not done:
        seen = f"none ('{left[0].name}': {left[0].reason})" if left else "none"
        raise ModelError("a model must have a layer that can be quantised", seen, "give a network with plain layers")
    taken = {id(parameter) for name, module in found for parameter in module.parameters()}
    for name, module in coarse.named_modules():
        if any(id(parameter) not in taken for parameter in module.parameters(recurse=False)):
            left.append(skipped(name, module, "only fully connected layers and convolutions are quantised"))
    return coarse, Quantization(bits=bits, levels=2**bits - 1, per=per, layers=done, left=left)


def quantized(weight: Float[Tensor, "h *rest"], bits: int, per: Per = "channel") -> Float[Tensor, "h *rest"]:
    """The nearest of the values largest * k / n, k = -n ... n, n = 2^(bits - 1) - 1; largest is a row's, or the tensor's.

    Computed in float64. The largest value itself is kept exactly, so the grid of the result is the one it came from.

    >>> quantized(torch.tensor([[1.0, 0.4, -0.2]]), 3).mul(3).tolist()
    [[3.0, 1.0, -1.0]]
    """
    n = 2 ** (bits - 1) - 1
    w = weight.detach().double()
    largest = _largest(w, per)
    unit = w / torch.where(largest > 0, largest, 1.0)
    nearest: Tensor = (unit * n).round() / n * largest
    return nearest.to(weight.dtype)


def _quantize_layer(name: str, module: nn.Module, bits: int, per: Per) -> QuantizedLayer:
    step = error = 0.0
    weights = _weights(module)
    for weight in weights:
        if not bool(torch.isfinite(weight).all()):
            raise ModelError("weights must be finite", f"NaN or infinite values in '{name}'", "check the training")
        before = weight.detach().double()
        after = quantized(weight, bits, per)
        length = float(before.norm())
        step = max(step, float(_largest(before, per).max()) / (2 ** (bits - 1) - 1))
        error = max(error, float((after.double() - before).norm()) / length if length > 0 else 0.0)
        weight.data.copy_(after)
    numbers = sum(weight.numel() for weight in weights)
    return QuantizedLayer(name=name, kind=type(module).__name__, parameters=numbers, step=step, error=error)


def _largest(weight: Float[Tensor, "h *rest"], per: Per) -> Float[Tensor, "h *ones"]:
    """The largest magnitude of each row or filter, or of all; shaped so that the weight can be divided by it."""
    largest = weight.abs().flatten(1).amax(1)
    if per == "tensor":
        largest = largest.amax().expand(len(weight))
    return largest.reshape(-1, *(1,) * (weight.ndim - 1))


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """The weight, also one under a pruning mask; a low-rank layer's two factors."""
    return [parameter for parameter in module.parameters() if parameter.ndim > 1]


def _unfit(module: nn.Module) -> str | None:
    """Why a layer cannot be quantised, where it cannot."""
    if is_computed(module) and not hasattr(module, "weight_mask"):
        return "its weight is computed from others; remove the parametrisation"
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
        return "a transposed convolution's weight is no matrix of filters"
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd | HasMatrix) or not _weights(module):
        return "it has no weight of its own"
    if any(weight.is_complex() for weight in _weights(module)):
        return "its weight is complex"
    return None if all(weight.numel() for weight in _weights(module)) else "it has no weights"
