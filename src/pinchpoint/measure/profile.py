"""A model's compressibility in one typed record: neuron and spectral view of each layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.compressibility import dominant_terms, k_for_residual, residual, sorted_magnitudes, spread
from pinchpoint.measure.layers import Layer, layers
from pinchpoint.measure.spectrum import effective_rank, frobenius_norm, row_norms, singular_values, stable_rank
from pinchpoint.records import LayerProfile, Profile, View

_POINTS = 256


def profile(model: nn.Module, *, k_share: float = 0.1, target: float = 0.1, q: float = 1.0) -> Profile:
    """Measure every linear layer of a model, in float64.

    Args:
        model: any module with linear or convolutional layers.
        k_share: residual and spread are taken at k = ceil(k_share * n), n the number of rows or singular values.
        target: ``k_for_target`` is the smallest k with a residual of at most this.
        q: order of the norm in the residual.

    Returns:
        A ``Profile``; ``polars.DataFrame(profile(model).rows())`` makes it a data frame.

    Raises:
        ModelError: for a share or target outside its range, and whatever ``layers`` refuses.

    Source: Barsbey et al. 2026, section 2.

    >>> record = profile(nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5)), k_share=0.2)
    >>> [(layer.name, layer.neuron.k, layer.spectral.n) for layer in record.layers]
    [('0', 2, 10), ('2', 1, 5)]
    """
    if not 0.0 < k_share <= 1.0:
        raise ModelError("k_share lies in (0, 1]", k_share, "try 0.1")
    found = layers(model)
    records = [_layer_profile(layer, k_share, target, q) for layer in found]
    encoder = records[:-1] or records
    return Profile(
        layers=records,
        skipped=list(found.skipped),
        neuron=1.0 - sum(record.neuron.residual for record in encoder) / len(encoder),
        spectral=1.0 - sum(record.spectral.residual for record in encoder) / len(encoder),
    )


def _layer_profile(layer: Layer, k_share: float, target: float, q: float) -> LayerProfile:
    nu, sigma = row_norms(layer.matrix), singular_values(layer.matrix)
    rows, columns = layer.matrix.shape
    return LayerProfile(
        name=layer.name,
        kind=layer.kind,
        rows=rows,
        columns=columns,
        parameters=layer.parameters,
        frobenius=frobenius_norm(layer.matrix),
        matrix_linf=float(nu.max()),
        matrix_l2=float(sigma[0]),
        effective_rank=effective_rank(sigma),
        stable_rank=stable_rank(sigma),
        neuron=_view(nu, k_share, target, q),
        spectral=_view(sigma, k_share, target, q),
    )


def _view(theta: Float[Tensor, "n"], k_share: float, target: float, q: float) -> View:
    n = theta.shape[0]
    k = dominant_terms(k_share, n)
    magnitudes = sorted_magnitudes(theta)
    total = float(magnitudes.sum())
    ranks = torch.linspace(0, n - 1, min(n, _POINTS), device=theta.device).round().long()
    return View(
        n=n,
        k=k,
        q=q,
        residual=float(residual(theta, k, q)),
        spread=float(spread(theta, k)),
        target=target,
        k_for_target=int(k_for_residual(theta, target, q)),
        ranks=(ranks + 1).tolist(),
        values=(magnitudes[ranks] / total if total > 0 else magnitudes[ranks]).tolist(),
    )
