"""The steps of an audit, one function each: a model, samples and a threat go in, a record comes out.

``audit`` does them in turn; a study does and keeps each on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pinchpoint.attack import Threat, square
from pinchpoint.auditing.config import AuditConfig, ThreatConfig
from pinchpoint.bound import (
    encoder,
    gap_bound_from_margins,
    head_factor,
    lipschitz,
    margins,
    radii_from_margins,
    structure_scale,
    trace,
)
from pinchpoint.bound.lipschitz import uppers_by_method
from pinchpoint.errors import ModelError
from pinchpoint.evaluate import (
    Attack,
    accuracy,
    adversarial_loss,
    cross_entropy_loss,
    default_attacks,
    logits_of,
    loss_and_examples,
    one_answer,
    robust_accuracy,
    robust_curve,
    universal_accuracy,
)
from pinchpoint.measure import profile
from pinchpoint.measure.layers import float64_copy, layers
from pinchpoint.mechanism import LayerGain, gains
from pinchpoint.mechanism.decisions import pictures
from pinchpoint.records import (
    Bounded,
    Bounds,
    Carried,
    Fooled,
    Judged,
    LayerBound,
    LayerMechanism,
    Measured,
    Mechanism,
    Norm,
    Pictures,
    Queried,
    RobustAt,
    ThreatNorm,
)
from pinchpoint.utils.memory import give_back

_AT_ONCE = 256
"""Samples turned into float64 at a time."""
_HOPE = 0.1


def measure(model: nn.Module, x: Tensor, y: Tensor, config: AuditConfig) -> Measured:
    """Compressibility of every layer, and accuracy on the samples."""
    return Measured(
        profile=profile(model, k_share=config.k_share, target=config.target),
        clean_accuracy=accuracy(model, x, y),
        samples=len(x),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def bound(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatConfig,
    config: AuditConfig,
    *,
    hoped: Tensor | None = None,
    by_clock: bool = False,
) -> Bounded:
    """Bounds, certified radii, and the gap bound at the judged budget. Logits are evaluated in float64.

    Args:
        model, x, y: a network and samples.
        threat: the budget, and the norm.
        config: how long to sharpen.
        hoped: rows, samples that are right best: where none of these has a radius of a tenth of the budget, the others are
            given the radius 0, which is certain as well, and there is no median radius.
        by_clock: whether the time ends what it sharpens, as a budgeted audit asks for; else numbers of operations do, and
            two calls give the same numbers.

    Raises:
        ModelError: for a norm or a network that cannot be bounded, by name.
    """
    norm = _bounded_norm(threat.norm)
    network = trace(model, x.shape[1:])
    features, head = encoder(network)
    points, steps = x[: max(1, config.jacobian_samples)], config.bound_steps
    seconds = config.bound_seconds
    tightest = lipschitz(features, norm=norm, inputs=points, budget_s=seconds, steps=steps, by_clock=by_clock)
    try:
        structured = uppers_by_method(features, norm, "structure", seconds, steps)["structure"]
    except ModelError:  # a layer is too large to be written out
        structured = None
    constants = margins(network, norm=norm, budget_s=seconds, steps=steps, by_clock=by_clock).upper
    del network, features  # its float64 weights make room for those of another copy
    give_back(model)
    radii, known = _radii(model, x, y, constants, hoped, threat.eps)
    certified = radii[radii > 0] if known else radii[:0]
    record = Bounds(
        norm=norm,
        lipschitz=tightest.upper,
        lipschitz_method=tightest.method,
        lipschitz_product=tightest.uppers["product"],
        lipschitz_structure=structured,
        lipschitz_lower=tightest.lower,
        head_factor=head_factor(head, y, norm),
        layers=[_layer_bound(layer.name, layer.matrix, norm) for layer in layers(model) if layer.diagonal is None],
        median_radius=float(certified.median()) if len(certified) else None,
        assumptions=list(tightest.assumptions),
    )
    allowed = gap_bound_from_margins(constants, y, threat.eps)
    return Bounded(bounds=record, eps=threat.eps, gap_bound=allowed, radii=radii.tolist())


def _radii(
    model: nn.Module, x: Tensor, y: Tensor, constants: Tensor, hoped: Tensor | None, eps: float
) -> tuple[Tensor, bool]:
    """Certified radii, and whether they are all those that the constants give."""
    copied = float64_copy(model).to(x.device)

    def some(rows: Tensor) -> Tensor:
        logits = torch.cat([logits_of(copied, x[part].double()) for part in rows.split(_AT_ONCE)])
        return radii_from_margins(logits, y[rows], constants)

    radii = constants.new_zeros(len(x))
    if hoped is not None:
        radii[hoped] = some(hoped).to(radii) if len(hoped) else radii[:0]
        if float(radii.max()) < _HOPE * eps:
            return radii, False
    return some(torch.arange(len(x))), True


def _bounded_norm(norm: ThreatNorm) -> Norm:
    if norm == "l1":
        raise ModelError("Lipschitz constants are bounded in linf and l2", norm, "it is attacked only")
    return norm


def _layer_bound(name: str, matrix: Tensor, norm: Norm) -> LayerBound:
    result = structure_scale(matrix, norm)
    return LayerBound(
        name=name,
        operator_norm=result.operator_norm,
        structure=result.structure,
        scale=result.scale,
        bound=result.bound,
        k=result.k,
        k_row=result.k_row,
    )


def attack(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatConfig, config: AuditConfig, seed: int
) -> tuple[Judged, Tensor]:
    """Verdicts at the judged budget and along the curve, and losses; and the worst points found."""
    with one_answer(model, x):
        clean_loss = float(cross_entropy_loss(model, x, y).mean())
        losses, where, known = loss_and_examples(model, x, y, threat.threat(), steps=config.steps, seed=seed)
        budgets = sorted({*threat.curve, threat.eps})
        quick = default_attacks(model, x, steps=config.curve_steps, seed=seed)
        thorough = default_attacks(model, x, steps=config.steps, seed=seed)
        thorough.pop("apgd-ce", None)  # which would go the way of the search for the loss once more
        below = robust_curve(model, x, y, [threat.threat(eps) for eps in budgets if eps < threat.eps], attacks=quick)
        if below:  # what a smaller budget found holds here too
            fell = below[-1].fallen.reshape(-1, *(1,) * (x.ndim - 1))
            known = torch.where(fell, below[-1].adversarial, known)
        judged = robust_accuracy(model, x, y, threat.threat(), attacks=thorough, known=known)
        above = robust_curve(
            model, x, y, [threat.threat(eps) for eps in budgets if eps > threat.eps], attacks=quick, known=judged
        )
    result = Judged(
        norm=threat.norm,
        eps=threat.eps,
        robust_accuracy=judged.robust_accuracy,
        clean_loss=clean_loss,
        adversarial_loss=float(losses.mean()),
        settled=judged.settled,
        curve=[
            RobustAt(eps=verdict.threat.eps, robust_accuracy=verdict.robust_accuracy)
            for verdict in (*below, judged, *above)
        ],
    )
    return result, where


def fool(
    model: nn.Module,
    fit: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    threat: ThreatConfig,
    config: AuditConfig,
    seed: int,
) -> Fooled:
    """One perturbation for all inputs, fitted on other samples, at its own budget."""
    eps = threat.eps if threat.universal_eps is None else threat.universal_eps
    left, _ = universal_accuracy(model, fit, (x, y), threat.threat(eps), steps=config.universal_steps, seed=seed)
    return Fooled(norm=threat.norm, eps=eps, accuracy=left)


def query(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatConfig, config: AuditConfig, seed: int) -> Queried:
    """What the Square attack leaves, which sees answers and no gradients."""
    attacks: dict[str, Attack] = {"square": partial(square, queries=config.queries, seed=seed)}
    verdict = robust_accuracy(model, x, y, threat.threat(), attacks=attacks)
    return Queried(norm=threat.norm, eps=threat.eps, queries=config.queries, robust_accuracy=verdict.robust_accuracy)


def carry(
    surrogate: nn.Module,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatConfig,
    config: AuditConfig,
    seed: int,
) -> Carried:
    """What examples made on another model leave of this one."""
    _, where = adversarial_loss(surrogate, x, y, threat.threat(), steps=config.steps, seed=seed)
    verdict = robust_accuracy(model, x, y, threat.threat(), attacks={}, known=where)
    return Carried(
        norm=threat.norm,
        eps=threat.eps,
        robust_accuracy=verdict.robust_accuracy,
        surrogate_accuracy=accuracy(surrogate, x, y),
    )


def draw(model: nn.Module, x: Tensor, where: Tensor, y: Tensor, threat: ThreatConfig, config: AuditConfig) -> Pictures:
    """Decision planes and representations, of the perturbations that raised the loss most.

    Raises:
        ModelError: where there is nothing to draw.
    """
    return pictures(model, x, where, y, threat.threat())


def explain(model: nn.Module, x: Tensor, where: Tensor, threat: ThreatConfig, config: AuditConfig) -> Mechanism:
    """Mechanism of the perturbations that raised the loss most.

    Raises:
        ModelError: where there is none to follow.
    """
    return mechanism_of(threat.threat(), gains(model, x, where, norm=threat.norm, k_share=config.k_share))


def mechanism_of(threat: Threat, followed: Sequence[LayerGain]) -> Mechanism:
    """Where perturbations point, and how large they become; layers whose input is no patch, token or row are left out.

    The head's input is what the encoder gives: its relative change is the paper's amplification.
    """
    return Mechanism(
        norm=threat.norm,
        eps=threat.eps,
        amplification=followed[-1].source_amplification,
        layers=[
            LayerMechanism(
                name=layer.name,
                k=layer.k,
                alignment=layer.alignment,
                baseline=layer.baseline,
                amplification=layer.amplification,
            )
            for layer in followed
            if layer.alignment is not None
        ],
    )
