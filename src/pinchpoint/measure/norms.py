"""Norms of the operator a layer is, certified from both sides: never those of a matricised convolution."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.convolution.norms import convolution_l2, convolution_linf
from pinchpoint.measure.convolution.operator import Convolution, convolution
from pinchpoint.measure.layers import Layer
from pinchpoint.measure.spectrum import inflate, spectral_norm_bounds
from pinchpoint.measure.weights import HasDense, is_convolution


@dataclass(frozen=True)
class OperatorNorms:
    """||A||_inf <= ``linf``, exact up to rounding; ``l2_lower`` <= ||A||_2 <= ``l2_upper``; or a reason for None."""

    linf: float | None
    l2_lower: float | None
    l2_upper: float | None
    method: str | None
    reason: str | None


def operator_norms(
    layer: Layer,
    matrix: Float[Tensor, "h d"],
    nu: Float[Tensor, "h"],
    sigma: Float[Tensor, "r"],
    tolerance: float | None = 0.05,
) -> OperatorNorms:
    """Norms of one layer.

    Args:
        layer: of any kind but a diagonal.
        matrix: what ``layer.matrix`` gave.
        nu: l1 norms of its rows.
        sigma: its singular values, descending.
        tolerance: of a convolution's l_2 bounds, see ``convolution_l2``; None leaves convolutions out.
    """
    if layer.kind == "embedding":
        return _unknown("an embedding looks rows up and multiplies nothing")
    if not is_convolution(layer.module):
        linf = inflate(float(nu.max()), layer.shape[1])
        return OperatorNorms(linf, *spectral_norm_bounds(sigma, layer.shape), "the matrix itself", None)
    if tolerance is None:
        return _unknown("not asked for (norms=False)")
    if layer.input_size is None:
        return _unknown(
            "a convolution's norm depends on the size of its input: give input_shape, and see that it is used"
        )
    try:
        plain = layer.module.dense() if isinstance(layer.module, HasDense) else layer.module
        op = _operator(plain, layer.input_size, matrix)
        l2 = convolution_l2(op, tolerance=tolerance)
        return OperatorNorms(convolution_linf(op).upper, l2.lower, l2.upper, l2.method, None)
    except ModelError as error:
        return _unknown(str(error))


def _operator(module: nn.Module, input_size: tuple[int, ...], weight: Float[Tensor, "h d"]) -> Convolution:
    """The convolution with the weights of the layer's matrix, into which a batch norm may be folded."""
    op = convolution(module, input_size)
    if op.transposed:  # the matrix has a row an output channel
        weight = weight.view(op.groups, -1, op.weight.shape[0] // op.groups, *op.kernel).transpose(1, 2)
    return replace(op, weight=weight.reshape(op.weight.shape))


def _unknown(reason: str) -> OperatorNorms:
    return OperatorNorms(None, None, None, None, reason)
