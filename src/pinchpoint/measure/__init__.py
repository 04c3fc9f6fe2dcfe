"""Compressibility from weights alone: no data (paper, section 2)."""

from pinchpoint.measure.compressibility import (
    k_for_residual,
    participation_ratio,
    pq_index,
    residual,
    residual_curve,
    spread,
)
from pinchpoint.measure.forward import OneAtATime, check_forward
from pinchpoint.measure.layers import HasMatrix, Layer, Layers, layers
from pinchpoint.measure.profile import profile, spectra
from pinchpoint.measure.ranks import effective_rank, numerical_rank, stable_rank
from pinchpoint.measure.spectrum import operator_norm, operator_norm_upper, row_norms, singular_values

__all__ = [
    "HasMatrix",
    "Layer",
    "Layers",
    "OneAtATime",
    "check_forward",
    "effective_rank",
    "k_for_residual",
    "layers",
    "numerical_rank",
    "operator_norm",
    "operator_norm_upper",
    "participation_ratio",
    "pq_index",
    "profile",
    "residual",
    "residual_curve",
    "row_norms",
    "singular_values",
    "spectra",
    "spread",
    "stable_rank",
]
