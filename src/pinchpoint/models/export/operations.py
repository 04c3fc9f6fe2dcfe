"""The operations that a graph from a file may ask for: those of inference, none that could touch a file or raw memory.

A list of what is allowed, since ATen has operations that map files, take pointers out of tensors or trust indices.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

_LARGEST = 2**62

_POINTWISE = """
abs acos acosh add addcmul addcdiv asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu
clamp clamp_max clamp_min clip cos cosh div divide elu eq erf exp expm1 floor floor_divide fmod ge gelu glu gt hardshrink
hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid logical_and
logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg pow prelu reciprocal
relu relu6 remainder round rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink sqrt square sub subtract
tan tanh threshold trunc where
"""
_LAYERS = """
_softmax _log_softmax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
_adaptive_avg_pool2d _adaptive_avg_pool3d addmm addmv alpha_dropout avg_pool1d
avg_pool2d avg_pool3d baddbmm batch_norm bmm channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d
conv_transpose3d convolution dot dropout einsum embedding feature_dropout group_norm instance_norm layer_norm linear
log_softmax matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mm mv
outer pixel_shuffle pixel_unshuffle rms_norm scaled_dot_product_attention softmax upsample_bicubic2d upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""
_REDUCTIONS = """
all amax amin any argmax argmin cumsum linalg_norm linalg_vector_norm logsumexp max mean min norm prod std std_mean sum topk
sort var var_mean
"""
_SHAPES = """
_to_copy _unsafe_view alias broadcast_to cat chunk clone concat constant_pad_nd contiguous detach diagonal
expand expand_as fill flatten flip gather index index_select lift_fresh_copy meshgrid movedim narrow pad permute
reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad2d reshape reshape_as roll select slice split
split_with_sizes squeeze stack swapaxes sym_numel sym_size t tile to transpose tril triu type_as unbind unflatten unfold
unsqueeze view view_as
"""
_MAKERS = """
arange full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like
"""
ALLOWED = frozenset(" ".join((_POINTWISE, _LAYERS, _REDUCTIONS, _SHAPES, _MAKERS)).split())
"""Of ATen; ``relu_`` and the like, which write where they read, are meant too."""

IGNORED = (
    "torch.ops.aten._assert_async.msg",
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten.sym_constrain_range.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
)
"""Checks that torch.export adds, without results."""


def operation(target: str) -> Callable[..., Any]:
    """What a node of that name calls.

    Raises:
        LookupError: where it is not allowed.

    >>> operation("torch.ops.aten.relu_.default"), operation("_operator.add")(2, 3)
    (<OpOverload(op='aten.relu_', overload='default')>, 5)
    >>> operation("torch.ops.aten.from_file.default")
    Traceback (most recent call last):
    ...
    LookupError: torch.ops.aten.from_file.default
    """
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII)
    if found is not None and found[1].removesuffix("_") in ALLOWED and not found[2].endswith("out"):
        overload: object = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
        if isinstance(overload, OpOverload):
            return overload
    if target in _WHOLE_NUMBERS:
        return _WHOLE_NUMBERS[target]
    raise LookupError(target)


def added(first: Any, second: Any) -> Any:
    """Their sum, of the size of a dimension at most."""
    return _small(operator.add(first, second))


def subtracted(first: Any, second: Any) -> Any:
    """Their difference."""
    return _small(operator.sub(first, second))


def multiplied(first: Any, second: Any) -> Any:
    """Their product, of the size of a dimension at most."""
    return _small(operator.mul(first, second))


def _small(number: Any) -> Any:
    """A graph that squares and squares again would fill the memory by one number."""
    if isinstance(number, int) and abs(number) > _LARGEST:
        raise ValueError("a size beyond all bounds")
    return number


_WHOLE_NUMBERS: dict[str, Callable[..., Any]] = {
    "_operator.add": added,
    "_operator.sub": subtracted,
    "_operator.mul": multiplied,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.truediv": operator.truediv,
    **{f"_operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "math.ceil": math.ceil,
    "torch.sym_float": torch.sym_float,
    "torch.sym_int": torch.sym_int,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_not": torch.sym_not,
}
