"""What a paper says, written down so that records can judge it: a trend within families, or a contrast between models.

    claims:
      - id: rank_linf
        says: Robust accuracy falls as spectral compressibility rises
        paper: section 4.1
        trend: {metric: robust_accuracy, norm: linf, expected: falls, families: [rank]}
      - id: residual_beats_uniform
        says: Pruning by residual keeps more robust accuracy than one ratio for all layers
        contrast:
          {metric: robust_accuracy, norm: linf, expected: higher, of: {family: residual}, than: {family: uniform}}

``eps: null`` is the judged budget, a number one of the curve, ``each`` every budget of the curve, one verdict a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from pinchpoint.errors import ConfigError
from pinchpoint.records import ThreatNorm
from pinchpoint.records.metrics import METRICS, metric_keys
from pinchpoint.utils.config import StrictModel

if TYPE_CHECKING:
    Metric = str
    MetricOrLevel = str
else:
    Metric = Literal[tuple(METRICS)]
    MetricOrLevel = Literal[(*METRICS, "level")]

PLAIN = metric_keys(per_norm=False)
CURVE = tuple(key for key, metric in METRICS.items() if metric.on_curve)

Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["each"] | None


def _is_number(text: str) -> bool:
    """YAML takes 1e-3 for text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Measured(StrictModel):
    """A column of the study's rows, at a budget where it has one."""

    metric: Metric
    norm: ThreatNorm | None = None
    eps: Budget = None

    @field_validator("eps", mode="before")
    @classmethod
    def _budget(cls, eps: object) -> object:
        if isinstance(eps, bool) or (isinstance(eps, str) and eps != "each" and not _is_number(eps)):
            raise ConfigError(
                "eps must be a budget, each or null", eps, "write eps: each for every budget of the curve"
            )
        return eps

    def _metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    @model_validator(mode="after")
    def _measurable(self) -> _Measured:
        by_norm = [metric for metric in self._metrics() if metric not in (*PLAIN, "level")]
        if by_norm and self.norm is None:
            raise ConfigError(f"{by_norm[0]} is measured under a norm", "none", "name one, for example norm: linf")
        if self.norm is not None and not by_norm:
            raise ConfigError(f"{self.metric} is measured without a norm", self.norm, "leave norm out")
        if self.eps is not None and (off := [metric for metric in self._metrics() if metric not in CURVE]):
            raise ConfigError(f"only {', '.join(CURVE)} are measured at several budgets", off[0], "leave eps out")
        return self


class TrendConfig(_Measured):
    """Within each family and seed, ``metric`` falls or rises with ``against``."""

    against: MetricOrLevel = Field(default="compressibility", description="level: the place in the family")
    expected: Literal["falls", "rises"]
    families: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="all where null; each must show it"
    )
    pool: bool = Field(default=False, description="rank the models of all these families together, each counted once")

    @model_validator(mode="after")
    def _two_columns(self) -> TrendConfig:
        if self.against == self.metric:
            raise ConfigError("a trend needs two different columns", f"{self.metric} twice", "change against")
        if self.against not in (*PLAIN, "level") and self.norm is None:
            raise ConfigError(f"{self.against} is measured under a norm", "none", "name one, for example norm: linf")
        return self


class Side(StrictModel):
    """One side of a contrast: the models of a family at one level, or at all levels that both sides share."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # label: 0.5

    family: str
    label: str | None = Field(default=None, description="of one level; the mean over shared levels where null")
    metric: Metric | None = Field(default=None, description="the contrast's where null")


class ContrastConfig(_Measured):
    """For the same seeds, ``metric`` is higher or lower on one side than on the other."""

    expected: Literal["higher", "lower"]
    of: Side
    than: Side

    def _metrics(self) -> tuple[str, ...]:
        return (self.of.metric or self.metric, self.than.metric or self.metric)

    @model_validator(mode="after")
    def _two_sides(self) -> ContrastConfig:
        if (self.of.label is None) != (self.than.label is None):
            labels = [self.of.label, self.than.label]
            raise ConfigError("both sides of a contrast name a label, or neither", labels, "add or remove one")
        sides = [
            (side.family, side.label, metric)
            for side, metric in zip((self.of, self.than), self._metrics(), strict=True)
        ]
        if sides[0] == sides[1]:
            raise ConfigError("the sides of a contrast must differ", f"{self.of.family} twice", "change one of them")
        return self


class ClaimConfig(StrictModel):
    """One claim: an id, what it says, where the paper says it, and how records decide."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    says: str = Field(min_length=1)
    paper: str = Field(default="", description="section, figure or table; 'beyond' where the paper does not say it")
    trend: TrendConfig | None = None
    contrast: ContrastConfig | None = None

    @model_validator(mode="after")
    def _one_way(self) -> ClaimConfig:
        if (self.trend is None) == (self.contrast is None):
            seen = "neither" if self.trend is None else "both"
            raise ConfigError(f"claim '{self.id}' is either a trend or a contrast", seen, "give one of them")
        return self

    @property
    def how(self) -> TrendConfig | ContrastConfig:
        """The trend or the contrast."""
        return self.trend or self.contrast  # type: ignore[return-value]  # the validator saw to it

    def check(self, families: Mapping[str, Sequence[str]]) -> None:
        """Whether a study has what the claim speaks of.

        Args:
            families: the labels of every family's levels, by the family's name.

        Raises:
            ConfigError: where a family or label is not there.

        >>> claim = ClaimConfig(id="a", says="It falls", trend=TrendConfig(metric="clean_accuracy", expected="falls"))
        >>> claim.check({"rank": ["full", "8"]})
        """
        sides = (self.contrast.of, self.contrast.than) if self.contrast else ()
        named = (self.trend.families or ()) if self.trend else tuple(side.family for side in sides)
        for family in named:
            if family not in families:
                raise ConfigError(
                    f"claim '{self.id}' must name families of the study", family, f"use one of: {', '.join(families)}"
                )
        for side in sides:
            if side.label is not None and side.label not in families[side.family]:
                raise ConfigError(
                    f"claim '{self.id}' must name a label of family '{side.family}'",
                    side.label,
                    f"use one of: {', '.join(families[side.family])}",
                )
        if sides and sides[0].label is None and not set(families[named[0]]) & set(families[named[1]]):
            raise ConfigError(
                f"claim '{self.id}' compares families level by level, so they must share labels",
                " and ".join(", ".join(families[name]) for name in named),
                "name a label on both sides",
            )
