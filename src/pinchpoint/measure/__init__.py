"""Compressibility from weights alone: no data (paper, section 2)."""

from pinchpoint.measure.compressibility import k_for_residual, residual, residual_curve, spread
from pinchpoint.measure.layers import HasMatrix, Layer, Layers, layers
from pinchpoint.measure.profile import profile
from pinchpoint.measure.spectrum import (
    effective_rank,
    operator_norm,
    operator_norm_upper,
    row_norms,
    singular_values,
    stable_rank,
)

__all__ = [
    "HasMatrix",
    "Layer",
    "Layers",
    "effective_rank",
    "k_for_residual",
    "layers",
    "operator_norm",
    "operator_norm_upper",
    "profile",
    "residual",
    "residual_curve",
    "row_norms",
    "singular_values",
    "spread",
    "stable_rank",
]
