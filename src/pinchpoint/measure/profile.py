"""A model's compressibility in one typed record: four views of each layer, ranks, and norms of the true operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.compressibility import (
    ascending_magnitudes,
    dominant_terms,
    participation,
    pq,
    row_residuals,
    tail_shares,
)
from pinchpoint.measure.layers import Layer, layers
from pinchpoint.measure.norms import operator_norms
from pinchpoint.measure.ranks import effective_rank, numerical_rank, rank_tolerance, stable_rank
from pinchpoint.measure.spectrum import column_norms, frobenius_norm, row_norms, singular_values
from pinchpoint.records import LayerProfile, Profile, Skipped, View, ViewName
from pinchpoint.utils.threads import side_by_side

_POINTS = 256
_Result = TypeVar("_Result")


def profile(
    model: nn.Module,
    *,
    k_share: float = 0.1,
    target: float = 0.1,
    q: float = 1.0,
    input_shape: tuple[int, ...] | None = None,
    fold_batchnorm: bool = False,
    norms: bool = True,
    norm_tolerance: float = 0.05,
) -> Profile:
    """Measure every linear layer of a model, in float64. On a CPU, layers are measured side by side, a thread each.

    Args:
        model: any module with linear or convolutional layers.
        k_share: residual and spread are taken at k = ceil(k_share * n), n the number of rows, singular values, entries or
            columns.
        target: ``k_for_target`` is the smallest k with a residual of at most this.
        q: order of the norm in the residual.
        input_shape: shape of one input, without the batch; norms of convolutions need it.
        fold_batchnorm: multiply batch norms into the layers before them (needs ``input_shape``).
        norms: whether to bound the operator norms of convolutions, which takes as long as all else.
        norm_tolerance: how far, relatively, their upper l_2 bounds may lie above the lower ones where work can help it.

    Singular values below max(h, d) eps64 sigma_1 are rounding and count as zero.

    Returns:
        A ``Profile``; ``profile(model).frame()`` is a data frame with one row a layer. Batch norms, diagonal, have no
        profile and stand among the skipped.

    Raises:
        ModelError: for a share or target outside its range, and whatever ``layers`` refuses.

    Source: Barsbey et al. 2026, section 2; the column view and all companions go beyond it.

    >>> record = profile(nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5)), k_share=0.2)
    >>> [(layer.name, layer.neuron.k, layer.spectral.n, layer.entrywise.k) for layer in record.layers]
    [('0', 2, 10, 40), ('2', 1, 5, 10)]
    """
    if not 0.0 < k_share <= 1.0:
        raise ModelError("k_share lies in (0, 1]", k_share, "try 0.1")
    if not 0.0 <= target <= 1.0:
        raise ModelError("a target residual lies in [0, 1]", target, "try 0.1")
    found = layers(model, input_shape=input_shape, fold_batchnorm=fold_batchnorm)
    measured = [layer for layer in found if layer.diagonal is None]
    records = _each(
        measured, lambda layer: _layer_profile(layer, k_share, target, q, norm_tolerance if norms else None)
    )
    encoder = records[:-1] or records
    return Profile(
        layers=records,
        skipped=[*found.skipped, *(_diagonal(layer) for layer in found if layer.diagonal is not None)],
        neuron=_mean(encoder, "neuron"),
        spectral=_mean(encoder, "spectral"),
        entrywise=_mean(encoder, "entrywise"),
        column=_mean(encoder, "column"),
        weighted={view: _mean(encoder, view, weighted=True) for view in get_args(ViewName)},
    )


def spectra(model: nn.Module) -> dict[str, Float[Tensor, "r"]]:
    """The singular values of every layer's matrix, by the layer's name.

    >>> {name: len(sigma) for name, sigma in spectra(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))).items()}
    {'0': 3, '1': 2}
    """
    measured = [layer for layer in layers(model) if layer.diagonal is None]
    values = _each(measured, lambda layer: singular_values(layer.matrix))
    return {layer.name: sigma for layer, sigma in zip(measured, values, strict=True)}


def _each(measured: Sequence[Layer], work: Callable[[Layer], _Result]) -> list[_Result]:
    """``work`` for every layer, the largest first; on a GPU one after the other."""
    if any(parameter.is_cuda for layer in measured for parameter in layer.module.parameters()):
        return [work(layer) for layer in measured]
    order = sorted(range(len(measured)), key=lambda place: -math.prod(measured[place].shape))
    done = dict(zip(order, side_by_side(lambda place: work(measured[place]), order), strict=True))
    return [done[place] for place in range(len(measured))]


def _layer_profile(layer: Layer, k_share: float, target: float, q: float, tolerance: float | None) -> LayerProfile:
    matrix = layer.matrix
    rows, columns = matrix.shape
    nu, sigma = row_norms(matrix), singular_values(matrix)
    noise = rank_tolerance(rows, columns, torch.float64) * sigma[0]
    sigma = torch.where(sigma > noise, sigma, 0.0)  # their roots count in the PQ index
    smallest = rank_tolerance(rows, columns, _stored_dtype(layer))
    row_k = dominant_terms(k_share, columns)
    by_row = row_residuals(matrix, row_k, q)

    def view(theta: Float[Tensor, "n"]) -> View:
        return _view(theta, k_share, target, q)

    true = operator_norms(layer, matrix, nu, sigma, tolerance)
    return LayerProfile(
        name=layer.name,
        kind=layer.kind,
        rows=rows,
        columns=columns,
        parameters=layer.parameters,
        frobenius=frobenius_norm(matrix),
        matrix_linf=float(nu.max()),
        matrix_l2=float(sigma[0]),
        linf=true.linf,
        l2_lower=true.l2_lower,
        l2_upper=true.l2_upper,
        norm_method=true.method,
        norm_reason=true.reason,
        effective_rank=effective_rank(sigma),
        stable_rank=stable_rank(sigma),
        numerical_rank=numerical_rank(sigma, smallest),
        rank_tolerance=smallest,
        row_k=row_k,
        row_residual_mean=float(by_row.mean()),
        row_residual_max=float(by_row.max()),
        neuron=view(nu),
        spectral=view(sigma),
        entrywise=view(matrix.flatten()),
        column=view(column_norms(matrix)),
        head=None if layer.groups is None else view(_block_norms(layer.groups.split(matrix))),
    )


def _block_norms(blocks: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "heads"]:
    """l1 norms: what the neuron view (or for ``out`` the column view) gives each head's rows (columns) together."""
    return torch.stack([block.abs().sum() for block in blocks])


def _view(theta: Float[Tensor, "n"], k_share: float, target: float, q: float) -> View:
    n = theta.shape[0]
    k = dominant_terms(k_share, n)
    ascending = ascending_magnitudes(theta)
    total, ratio, index = float(ascending.sum()), float(participation(ascending)), float(pq(ascending))
    shares = tail_shares(ascending, q)  # shares[i - 1]: the residual that leaves out the i smallest
    ranks = torch.linspace(1, n, min(n, _POINTS), dtype=torch.float64, device=theta.device).round().long()
    residuals = torch.where(ranks < n, shares[n - ranks - 1], 0.0)
    return View(
        n=n,
        k=k,
        q=q,
        residual=float(shares[n - k - 1]) if k < n else 0.0,
        spread=float(1.0 - ascending[n - k]) if total > 0 else 0.0,
        target=target,
        k_for_target=int(torch.count_nonzero(shares[:-1] > target)) + 1,
        participation_ratio=ratio,
        pq_index=index,
        ranks=ranks.tolist(),
        values=(ascending[n - ranks] / (total or 1.0)).tolist(),
        residuals=residuals.tolist(),
    )


def _stored_dtype(layer: Layer) -> torch.dtype:
    """The type the weights are stored in: their own rounding is what a singular value must exceed to count."""
    kinds = {parameter.dtype for parameter in layer.module.parameters() if parameter.dtype.is_floating_point}
    return max(kinds, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def _diagonal(layer: Layer) -> Skipped:
    kind, reason = (
        type(layer.module).__name__,
        "a diagonal, one number a channel: it has no rows or entries to leave out",
    )
    return Skipped(name=layer.name, kind=kind, reason=reason, parameters=layer.parameters)


def _mean(encoder: Sequence[LayerProfile], view: ViewName, weighted: bool = False) -> float:
    """1 - residual, averaged over layers."""
    weights = [layer.rows * layer.columns if weighted else 1 for layer in encoder]
    kept = [1.0 - getattr(layer, view).residual for layer in encoder]
    return math.fsum(map(operator.mul, weights, kept)) / sum(weights)
