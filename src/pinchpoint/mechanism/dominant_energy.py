"""The energy of a perturbation in a layer's dominant directions, patch by patch for convolutions, token by token else."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.measure.layers import Layer
from pinchpoint.measure.weights import HasDense, is_convolution
from pinchpoint.mechanism.directions import right_singular_vectors

Inside = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of perturbations (samples, pieces, *what the layer is given): each sample's energy inside, and in all."""

_CONV = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
_GRAM_FROM = 256
_GRAM_FLOOR = 1e-5


def inside(layer: Layer, k: int, like: Tensor) -> Inside | None:
    """How to measure energy in the layer's k dominant right singular directions; None where its input has no rows of them.

    Args:
        layer: of any kind but a diagonal.
        k: 1 ... min(h, d).
        like: its device and, where that is not half precision, its dtype are computed in.
    """
    module = layer.module.dense() if isinstance(layer.module, HasDense) else layer.module
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    if not is_convolution(module):
        vectors = dominant_directions(layer.matrix, k).to(like.device, dtype)
        return lambda a: _by_token(a.to(dtype), vectors)
    if not isinstance(module, nn.modules.conv._ConvNd) or module.transposed:
        return None
    filters = dominant_directions(layer.matrix, k).to(like.device, dtype).unflatten(1, (-1, *module.kernel_size))
    return lambda a: _by_patch(a.to(dtype), filters, module)


def dominant_directions(matrix: Float[Tensor, "h d"], k: int) -> Float[Tensor, "k d"]:
    """``right_singular_vectors``, of a large matrix from W W' or W' W: the same span, several times as fast."""
    h, d = matrix.shape
    if min(h, d) < _GRAM_FROM:
        return right_singular_vectors(matrix, k)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if h <= d else matrix.T @ matrix)
    top, last = (math.sqrt(max(0.0, float(values[-place]))) for place in (1, k))
    if last <= _GRAM_FLOOR * top:  # what squaring has left of such values is noise
        return right_singular_vectors(matrix, k)
    dominant: Tensor = vectors[:, -k:].flip(1).T
    return dominant if h > d else (dominant @ matrix) / values[-k:].flip(0).sqrt()[:, None]


def _by_token(a: Tensor, vectors: Float[Tensor, "k d"]) -> tuple[Tensor, Tensor]:
    return _energy(a @ vectors.T), _energy(a)


def _by_patch(a: Tensor, filters: Tensor, module: nn.modules.conv._ConvNd) -> tuple[Tensor, Tensor]:
    """Patches are what the kernel sees, of each group of channels: their products with directions are a convolution."""
    convolve, pads = _CONV[len(module.kernel_size)], module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    samples = len(a)
    padded = nn.functional.pad(a.flatten(0, 1), pads, mode=mode)
    patches = padded.unflatten(1, (module.groups, -1)).flatten(0, 1)
    ones = filters.new_ones(1, 1, *module.kernel_size)
    within = convolve(patches, filters, stride=module.stride, dilation=module.dilation)
    size = patches.square().sum(1, keepdim=True)
    everything = convolve(size, ones, stride=module.stride, dilation=module.dilation)
    return _energy(within.unflatten(0, (samples, -1))), everything.reshape(samples, -1).sum(1, dtype=torch.float64)


def _energy(a: Tensor) -> Tensor:
    energy: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1, dtype=torch.float64).square()
    return energy
