"""From a Lipschitz constant of the encoder to the robustness gap and to certified radii (paper, Corollary 3.3).

With logits = C z + b, z = encoder(x), L_p the encoder's constant and p* the dual of p (1 for linf, 2 for l2):

    binary logistic loss:       F_adv <= F + eps L_p ||c||_{p*}
    multi-class cross-entropy:  F_adv <= F + eps L_p E_y[ max_{j != y} ||c_j - c_y||_{p*} ]
    certified radius of x:      min_{j != y} (logit_y - logit_j) / (L_p ||c_j - c_y||_{p*})

The multi-class form is ours: cross-entropy is 1-Lipschitz in max_{j != y} |change of (logit_j - logit_y)|. Two classes
give the paper's form with c = c_1 - c_0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pinchpoint.errors import ModelError, ThreatError
from pinchpoint.measure.spectrum import as_matrix, check_norm, inflate, times_up
from pinchpoint.records import Norm


def dual_differences(head: Float[Tensor, "classes d"], norm: Norm) -> Float[Tensor, "classes classes"]:
    """||c_j - c_y||_{p*} at [y, j], raised by the rounding error.

    >>> dual_differences(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "linf").round(decimals=6).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    check_norm(norm)
    head = as_matrix(head)
    _, exponent = math.frexp(float(head.abs().max()))
    halves = 2.0 ** (-exponent // 2), 2.0 ** (-exponent - -exponent // 2)  # together their product may be too large
    scaled = head * halves[0] * halves[1]  # exact, but for numbers that vanish beside the largest
    norms = _distances(scaled, 1.0 if norm == "linf" else 2.0) * inflate(1.0, head.shape[1]) + _VANISHED
    norms = norms / halves[0] / halves[1]
    norms = torch.nextafter(norms, torch.full_like(norms, torch.inf))
    # NaN and infinity are never zero
    return torch.where(_distances(head, torch.inf) == 0, 0.0, norms.nan_to_num(nan=torch.inf, posinf=torch.inf))


_VANISHED = 1e-150
"""Relative to the largest weight: more than what numbers add whose squares are too small for float64."""


def _distances(rows: Float[Tensor, "n d"], order: float) -> Float[Tensor, "n n"]:
    """Norms of differences, each difference taken before its norm is, so that close rows keep their digits."""
    return torch.cdist(rows, rows, order, compute_mode="donot_use_mm_for_euclid_dist")


def head_factor(head: Float[Tensor, "classes d"], labels: Integer[Tensor, "batch"], norm: Norm) -> float:
    """E_y[ max_{j != y} ||c_j - c_y||_{p*} ] over the labels seen."""
    _check_labels(labels, head.shape[0])
    return float(dual_differences(head, norm).amax(dim=1)[labels.long()].mean())


def gap_bound_binary(lipschitz: float, head: Float[Tensor, "d"], eps: float, norm: Norm) -> float:
    """Corollary 3.3: how much the logistic loss log(1 + exp(-y c.z)) can rise within eps, at most.

    >>> round(gap_bound_binary(2.0, torch.tensor([1.0, -1.0]), 0.1, "linf"), 6)
    0.4
    """
    _check_eps(eps)
    _check_lipschitz(lipschitz)
    return times_up(eps, lipschitz, float(dual_differences(torch.stack([torch.zeros_like(head), head]), norm)[0, 1]))


def gap_bound(
    lipschitz: float, head: Float[Tensor, "classes d"], labels: Integer[Tensor, "batch"], eps: float, norm: Norm
) -> float:
    """How much the mean cross-entropy over ``labels`` can rise within eps, at most.

    Args:
        lipschitz: an upper bound on the encoder's constant in ``norm``.
        head: weights of the last layer.
        labels: class of each sample.
        eps: budget, in input units.
        norm: ``linf`` or ``l2``.
    """
    _check_eps(eps)
    _check_lipschitz(lipschitz)
    return times_up(eps, lipschitz, head_factor(head, labels, norm))


def gap_bound_from_margins(
    constants: Float[Tensor, "classes classes"], labels: Integer[Tensor, "batch"], eps: float
) -> float:
    """How much the mean cross-entropy over ``labels`` can rise within eps: eps E_y[ max_j constants[y, j] ].

    Args:
        constants: at [y, j] an upper bound on the Lipschitz constant of logit_y - logit_j, as ``bound.margins`` gives.
        labels: class of each sample.
        eps: budget, in input units.

    >>> round(gap_bound_from_margins(torch.tensor([[0.0, 4.0], [4.0, 0.0]]), torch.tensor([0, 1]), 0.1), 6)
    0.4
    """
    _check_eps(eps)
    _check_labels(labels, len(constants))
    worst = constants.double().amax(dim=1)[labels.long().to(constants.device)]
    return times_up(eps, inflate(float(worst.mean()), len(labels)))


def certified_radii(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    lipschitz: float,
    head: Float[Tensor, "classes d"],
    norm: Norm,
) -> Float[Tensor, "batch"]:
    """Radius around each sample within which no perturbation changes the class; 0 where it is already wrong.

    Args:
        logits: clean logits; evaluate them in float64 for a certificate that does not hang on rounding.
        labels: true classes.
        lipschitz: an upper bound on the encoder's constant.
        head: weights of the last layer.
        norm: ``linf`` or ``l2``.

    >>> radii = certified_radii(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), 1.0, torch.eye(2), "linf")
    >>> radii.round(decimals=6).tolist()
    [1.0, 0.0]
    """
    if logits.shape[1] != head.shape[0]:
        raise ModelError("logits and head must agree on the number of classes", logits.shape[1], "check the head")
    _check_lipschitz(lipschitz)
    norms = dual_differences(head, norm)
    # a product that underflows is still no zero
    zero = (norms == 0) | torch.tensor(lipschitz == 0)
    change = torch.where(zero, 0.0, (lipschitz * norms).clamp_min(5e-324))
    return radii_from_margins(logits, labels, change)


def radii_from_margins(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    constants: Float[Tensor, "classes classes"],
) -> Float[Tensor, "batch"]:
    """Certified radii from the constant of each difference of two logits, as ``bound.margins`` gives them.

    Args:
        logits: clean logits; evaluate them in float64 for a certificate that does not hang on rounding.
        labels: true classes.
        constants: at [y, j] an upper bound on the Lipschitz constant of logit_y - logit_j.

    >>> radii_from_margins(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([[0.0, 4.0], [4.0, 0.0]])).item()
    0.5
    """
    _check_labels(labels, logits.shape[1])
    if len(logits) != len(labels):
        raise ModelError(
            "there must be one label a sample", f"{len(labels)} for {len(logits)} samples", "check the labels"
        )
    logits, labels = logits.detach().double(), labels.long()
    if bool((constants < 0).any()):
        raise ModelError("Lipschitz constants are zero or more", float(constants.min()), "take those of bound.margins")
    change = constants.to(logits.device, torch.float64)[labels].nan_to_num(nan=torch.inf, posinf=torch.inf)
    margins = logits.gather(1, labels[:, None]) - logits
    other = torch.arange(logits.shape[1], device=logits.device)[None] != labels[:, None]
    ratios = torch.where(change > 0, margins / change, torch.where(margins > 0, torch.inf, 0.0))
    # of logits that are not finite nothing is certain
    ratios = torch.where(torch.isfinite(logits).all(dim=1, keepdim=True), ratios, 0.0)
    radii = torch.where(other, ratios, torch.inf).amin(dim=1)
    return radii.nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0.0)


def certified_accuracy(radii: Float[Tensor, "batch"], eps: float) -> float:
    """Share of samples that are right and stay right within eps. Never above what any attack leaves."""
    _check_eps(eps)
    if radii.numel() == 0:
        raise ModelError("there must be at least one radius", "none", "give certified_radii of some samples")
    return float(((radii > 0) & (radii >= eps)).double().mean())


def _check_eps(eps: float) -> None:
    if not eps >= 0:
        raise ThreatError("eps must be zero or more", eps, "give the budget in input units, for example 8/255")


def _check_lipschitz(lipschitz: float) -> None:
    if not lipschitz >= 0:
        raise ModelError("a Lipschitz constant is zero or more", lipschitz, "take the upper of bound.lipschitz")


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.numel() == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        seen = "no label" if labels.numel() == 0 else f"labels {int(labels.min())} ... {int(labels.max())}"
        raise ModelError(f"labels must lie in 0 ... {classes - 1}", seen, "check the data set against the model's head")
