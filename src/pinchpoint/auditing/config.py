"""What to measure of a model, under which threats, and how hard to attack it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from pinchpoint.attack import Threat
from pinchpoint.errors import ConfigError
from pinchpoint.records import STAGE_KINDS, ThreatNorm
from pinchpoint.records.stages import AUDIT_STAGES
from pinchpoint.utils.config import StrictModel, fraction

if TYPE_CHECKING:
    Step = str
else:
    Step = Literal[AUDIT_STAGES]


class ThreatConfig(StrictModel):
    """A budget to judge at, and a rising grid of budgets for the curve (the judged one is added to it)."""

    norm: ThreatNorm
    eps: float = Field(ge=0, allow_inf_nan=False)
    curve: tuple[float, ...] = ()
    universal_eps: float | None = Field(
        default=None, description="budget of the universal perturbation; eps where null"
    )

    _fractions = field_validator("eps", "universal_eps", mode="before")(fraction)

    @field_validator("curve", mode="before")
    @classmethod
    def _curve(cls, curve: object) -> object:
        return [fraction(eps) for eps in curve] if isinstance(curve, list) else curve

    @model_validator(mode="after")
    def _makes_sense(self) -> ThreatConfig:
        for eps in (self.eps, *self.curve, *([] if self.universal_eps is None else [self.universal_eps])):
            Threat(self.norm, eps)
        return self

    def threat(self, eps: float | None = None) -> Threat:
        """The threat at a budget, in the [0, 1] box."""
        return Threat(self.norm, self.eps if eps is None else eps)


class CaptionsConfig(StrictModel):
    """Images and their captions, as ``pinchpoint.models.retrieval.load_captions`` reads them."""

    folder: str = Field(description="laid out like Flickr30k: a folder of images, and a file of captions beside it")
    split: str | None = Field(default=None, description="train, val or test of dataset_flickr30k.json; all where null")


class AuditConfig(StrictModel):
    """What to measure, and how hard to attack."""

    stages: tuple[Step, ...] = Field(
        default=("bound", "attack", "universal", "mechanism"),
        description="beside the profile. query: Square alone; transferred: examples of the surrogate; pictures: planes; "
        "retrieval: recall of a CLIP model on captions",
    )
    threats: tuple[ThreatConfig, ...] = (
        ThreatConfig(norm="linf", eps=8 / 255),
        ThreatConfig(norm="l2", eps=0.5),
    )
    steps: int = Field(default=100, ge=1, description="AutoPGD iterations at the judged budget")
    curve_steps: int = Field(default=30, ge=1, description="AutoPGD iterations at each other budget of the curve")
    universal_steps: int = Field(default=200, ge=1)
    queries: int = Field(default=1000, ge=1, description="answers a sample that the query-only attack may ask for")
    samples: int | None = Field(default=None, ge=1, description="attack the first n test samples; all where null")
    traced_samples: int = Field(default=1000, ge=1, description="the mechanism is that of the first n of these")
    jacobian_samples: int = Field(default=16, ge=0, description="points at which the lower Lipschitz bound is sampled")
    bound_seconds: float = Field(default=60.0, ge=0, description="no certified bound is sharpened for longer than this")
    bound_steps: int = Field(default=100, ge=0, description="optimisation steps of each certified bound")
    k_share: float = Field(default=0.1, gt=0, le=1, description="share of terms counted as dominant")
    target: float = Field(default=0.1, ge=0, le=1, description="residual that k_for_target reaches")
    captions: CaptionsConfig | None = Field(default=None, description="for retrieval")

    @field_validator("threats")
    @classmethod
    def _each_norm_once(cls, threats: tuple[ThreatConfig, ...]) -> tuple[ThreatConfig, ...]:
        norms = [threat.norm for threat in threats]
        if not norms or len(set(norms)) != len(norms):
            raise ConfigError(
                "threats must name at least one norm, and each once", norms, "merge their budgets into curve"
            )
        return threats

    @field_validator("stages")
    @classmethod
    def _sensible(cls, stages: tuple[Step, ...]) -> tuple[Step, ...]:
        if len(set(stages)) != len(stages):
            raise ConfigError("audit.stages must name each stage once", list(stages), "leave the second one out")
        for late in stages:
            if STAGE_KINDS[late].looks_at_attack and "attack" not in stages:
                raise ConfigError(f"{late} looks at what the attack found", list(stages), "add attack to audit.stages")
        return stages

    @model_validator(mode="after")
    def _captioned(self) -> AuditConfig:
        if "retrieval" in self.stages and self.captions is None:
            raise ConfigError("retrieval needs captions", "none", "add audit.captions: {folder: PATH}")
        return self
