"""One model + data + threats -> one typed record: measured, bounded, attacked and explained."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.bound import (
    certified_accuracy,
    encoder,
    gap_bound_from_margins,
    head_factor,
    lipschitz,
    margins,
    radii_from_margins,
    structure_scale,
    trace,
)
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.evaluate import (
    accuracy,
    adversarial_loss,
    cross_entropy_loss,
    default_attacks,
    logits_of,
    robust_accuracy,
    robust_curve,
    universal_accuracy,
)
from pinchpoint.learn.data import AnyDataset
from pinchpoint.measure import profile
from pinchpoint.measure.layers import float64_copy, layers
from pinchpoint.mechanism import trace as trace_mechanism
from pinchpoint.records import (
    Audit,
    Bounds,
    CurvePoint,
    LayerBound,
    LayerMechanism,
    Mechanism,
    Norm,
    Robustness,
)


class ThreatConfig(BaseModel):
    """A budget to judge at, and a rising grid of budgets for the curve (the judged one is added to it)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Norm
    eps: float = Field(ge=0, allow_inf_nan=False)
    curve: tuple[float, ...] = ()
    universal_eps: float | None = Field(
        default=None, description="budget of the universal perturbation; eps where null"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> ThreatConfig:
        for eps in (self.eps, *self.curve, *([] if self.universal_eps is None else [self.universal_eps])):
            Threat(self.norm, eps)
        return self

    def threat(self, eps: float | None = None) -> Threat:
        """The threat at a budget, in the [0, 1] box."""
        return Threat(self.norm, self.eps if eps is None else eps)


class AuditConfig(BaseModel):
    """What to measure, and how hard to attack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threats: tuple[ThreatConfig, ...] = (
        ThreatConfig(norm="linf", eps=8 / 255),
        ThreatConfig(norm="l2", eps=0.5),
    )
    steps: int = Field(default=100, ge=1, description="AutoPGD iterations at the judged budget")
    curve_steps: int = Field(default=30, ge=1, description="AutoPGD iterations at each other budget of the curve")
    universal_steps: int = Field(default=200, ge=1)
    samples: int | None = Field(default=None, ge=1, description="attack the first n test samples; all where null")
    jacobian_samples: int = Field(default=16, ge=0, description="points at which the lower Lipschitz bound is sampled")
    bound_seconds: float = Field(default=60.0, ge=0, description="no certified bound is sharpened for longer than this")
    bound_steps: int = Field(default=100, ge=0, description="optimisation steps of each certified bound")
    k_share: float = Field(default=0.1, gt=0, le=1, description="share of terms counted as dominant")
    target: float = Field(default=0.1, ge=0, le=1, description="residual that k_for_target reaches")

    @field_validator("threats")
    @classmethod
    def _each_norm_once(cls, threats: tuple[ThreatConfig, ...]) -> tuple[ThreatConfig, ...]:
        norms = [threat.norm for threat in threats]
        if not norms or len(set(norms)) != len(norms):
            raise ConfigError(
                "threats must name at least one norm, and each once", norms, "merge their budgets into curve"
            )
        return threats


def audit(
    model: nn.Module,
    data: AnyDataset,
    config: AuditConfig | None = None,
    *,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Audit:
    """Measure, bound, attack and explain one model.

    Args:
        model: returns logits for inputs in [0, 1].
        data: its test part is attacked; universal perturbations are fitted on its training part.
        config: threats and effort.
        seed: of the attacks.
        on_stage: told what is being done.

    Returns:
        An ``Audit``. What cannot be bounded is named in ``warnings``, and its numbers are None or left out.
    """
    config = config or AuditConfig()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    x, y = (tensor.to(device) for tensor in data.test.tensors(config.samples))
    fit = (data.x_train.to(device), data.y_train.to(device))
    seconds: dict[str, float] = {}
    warnings: list[str] = []
    robustness, mechanism, bounds = [], [], []

    def stage(name: str) -> _Stage:
        return _Stage(name, seconds, on_stage)

    with stage("profile"):
        measured = profile(model, k_share=config.k_share, target=config.target)
        clean = accuracy(model, x, y)
    for skipped in measured.skipped:
        warnings.append(f"not measured: {skipped.kind} at '{skipped.name}' ({skipped.reason})")
    for threat in config.threats:
        with stage(f"bound {threat.norm}"):
            try:
                bound, radii, gap_allowed = _bound(model, x, y, threat, config)
                bounds.append(bound)
            except ModelError as error:
                radii, gap_allowed = None, None
                warnings.append(f"not bounded in {threat.norm}: {error}")
        with stage(f"attack {threat.norm}"):
            result, where = _attack(model, fit, x, y, threat, config, seed, clean, radii, gap_allowed)
            robustness.append(result)
        with stage(f"mechanism {threat.norm}"):
            mechanism += _explain(model, x, where, threat, config, warnings)
    return Audit(
        clean_accuracy=clean,
        samples=len(x),
        profile=measured,
        bounds=bounds,
        robustness=robustness,
        mechanism=mechanism,
        seconds=seconds,
        warnings=warnings,
    )


class _Stage:
    """Times a stage and says that it has begun."""

    def __init__(self, name: str, seconds: dict[str, float], on_stage: Callable[[str], None] | None) -> None:
        self.name, self.seconds, self.on_stage = name, seconds, on_stage

    def __enter__(self) -> None:
        if self.on_stage is not None:
            self.on_stage(self.name)
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start


def _bound(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatConfig, config: AuditConfig
) -> tuple[Bounds, Tensor, float]:
    """Bounds, certified radii, and the gap bound at the judged budget. Logits are evaluated in float64."""
    network = trace(model, x.shape[1:])
    features, head = encoder(network)
    points, steps = x[: config.jacobian_samples], config.bound_steps
    tightest = lipschitz(features, norm=threat.norm, inputs=points, budget_s=config.bound_seconds, steps=steps)
    try:
        structured = lipschitz(features, norm=threat.norm, method="structure", inputs=points[:1]).upper
    except ModelError:  # a layer is too large to be written out
        structured = None
    constants = margins(network, norm=threat.norm, budget_s=config.bound_seconds, steps=steps).upper
    logits = logits_of(float64_copy(model).to(x.device), x.double())
    radii = radii_from_margins(logits, y, constants)
    certified = radii[radii > 0]
    record = Bounds(
        norm=threat.norm,
        lipschitz=tightest.upper,
        lipschitz_method=tightest.method,
        lipschitz_product=tightest.uppers["product"],
        lipschitz_structure=structured,
        lipschitz_lower=tightest.lower,
        head_factor=head_factor(head, y, threat.norm),
        layers=[
            _layer_bound(layer.name, layer.matrix, threat.norm) for layer in layers(model) if layer.diagonal is None
        ],
        median_radius=float(certified.median()) if len(certified) else None,
        assumptions=list(tightest.assumptions),
    )
    return record, radii, gap_bound_from_margins(constants, y, threat.eps)


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


def _attack(
    model: nn.Module,
    fit: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    threat: ThreatConfig,
    config: AuditConfig,
    seed: int,
    clean: float,
    radii: Tensor | None,
    gap_allowed: float | None,
) -> tuple[Robustness, Tensor]:
    """Verdicts at the judged budget and along the curve, loss gap, universal accuracy; and the worst points found."""
    clean_loss = float(cross_entropy_loss(model, x, y).mean())
    losses, where = adversarial_loss(model, x, y, threat.threat(), steps=config.steps, seed=seed)
    budgets = sorted({*threat.curve, threat.eps})
    quick = default_attacks(model, x, steps=config.curve_steps, seed=seed)
    thorough = default_attacks(model, x, steps=config.steps, seed=seed)
    below = robust_curve(model, x, y, [threat.threat(eps) for eps in budgets if eps < threat.eps], attacks=quick)
    # what a smaller budget found holds here too, and so does what raised the loss most
    known = where
    if below:
        fell = below[-1].fallen.reshape(-1, *(1,) * (x.ndim - 1))
        known = torch.where(fell, below[-1].adversarial, where)
    judged = robust_accuracy(model, x, y, threat.threat(), attacks=thorough, known=known)
    above = robust_curve(
        model, x, y, [threat.threat(eps) for eps in budgets if eps > threat.eps], attacks=quick, known=judged
    )
    fooled_by_one, _ = universal_accuracy(
        model, fit, (x, y), threat.threat(threat.universal_eps), steps=config.universal_steps, seed=seed
    )
    result = Robustness(
        norm=threat.norm,
        eps=threat.eps,
        robust_accuracy=judged.robust_accuracy,
        robust_over_clean=judged.robust_accuracy / clean if clean > 0 else None,
        clean_loss=clean_loss,
        adversarial_loss=float(losses.mean()),
        gap=float(losses.mean()) - clean_loss,
        gap_bound=gap_allowed,
        universal_accuracy=fooled_by_one,
        universal_eps=threat.eps if threat.universal_eps is None else threat.universal_eps,
        settled=judged.settled,
        curve=[
            CurvePoint(
                eps=verdict.threat.eps,
                robust_accuracy=verdict.robust_accuracy,
                certified_accuracy=None if radii is None else certified_accuracy(radii, verdict.threat.eps),
            )
            for verdict in (*below, judged, *above)
        ],
    )
    return result, where


def _explain(
    model: nn.Module, x: Tensor, where: Tensor, threat: ThreatConfig, config: AuditConfig, warnings: list[str]
) -> list[Mechanism]:
    """Mechanism of the perturbations that raised the loss most."""
    try:
        steps = trace_mechanism(model, x, where, k_share=config.k_share)
    except ModelError as error:
        warnings.append(f"no mechanism in {threat.norm}: {error}")
        return []
    # the head's input is what the encoder gives: its relative change is the paper's amplification
    return [
        Mechanism(
            norm=threat.norm,
            eps=threat.eps,
            amplification=steps[-1].source_amplification,
            layers=[
                LayerMechanism(
                    name=step.name,
                    k=step.k,
                    alignment=step.alignment,
                    baseline=step.baseline,
                    amplification=step.amplification,
                )
                for step in steps
            ],
        )
    ]
