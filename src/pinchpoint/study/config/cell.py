"""One cell of a study: everything a run depends on, but the seed. How its model is made, step by step, and judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pinchpoint.auditing.config import AuditConfig
from pinchpoint.data import DataConfig
from pinchpoint.errors import ConfigError
from pinchpoint.models.build import ZeroShotConfig
from pinchpoint.recipes.adversarial import AdversarialConfig
from pinchpoint.recipes.recipe import PenaltyConfig, Recipe
from pinchpoint.train import TrainConfig
from pinchpoint.utils.config import StrictModel

__all__ = [
    "Cell",
    "CompressConfig",
    "FactorizeConfig",
    "PruneConfig",
    "QuantizeConfig",
    "RescaleConfig",
    "SurrogateConfig",
    "TransferConfig",
    "TuneConfig",
]


class TuneConfig(StrictModel):
    """Fine-tuning of a model that was made smaller, on the data it was trained on."""

    train: TrainConfig = TrainConfig(epochs=3, patience=None)
    penalty: PenaltyConfig = PenaltyConfig()
    adversarial: AdversarialConfig | None = None


class TransferConfig(StrictModel):
    """A new head for other data: ``linear`` keeps the encoder as it is, ``full`` trains everything. The model is judged on
    these data."""

    data: DataConfig
    mode: Literal["linear", "full"] = "linear"
    train: TrainConfig = TrainConfig()


class PruneConfig(StrictModel):
    """``pinchpoint.compress.prune``."""

    kind: Literal["prune"] = "prune"
    ratio: float = Field(ge=0, lt=1)
    unit: Literal["filters", "heads", "rows", "singular values", "entries"] = "filters"
    allocation: Literal["residual", "uniform", "global"] = "residual"
    criterion: Literal["l1", "l2"] = "l2"
    steps: int = Field(default=1, ge=1)
    remove: bool | None = Field(default=None, description="null: filters and heads are removed, the rest is masked")
    tune: TuneConfig | None = Field(default=None, description="after each step; null: none")


class FactorizeConfig(StrictModel):
    """``pinchpoint.compress.factorize``: one of rank, energy and residual."""

    kind: Literal["factorize"] = "factorize"
    rank: int | None = Field(default=None, ge=1)
    energy: float | None = Field(default=None, gt=0, le=1)
    residual: float | None = Field(default=None, ge=0, lt=1)
    include_head: bool = False
    tune: TuneConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> FactorizeConfig:
        given = [key for key in ("rank", "energy", "residual") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ConfigError("factorising needs one of rank, energy and residual", given, "give exactly one")
        return self


class QuantizeConfig(StrictModel):
    """``pinchpoint.compress.quantize``: a control, which concentrates nothing."""

    kind: Literal["quantize"] = "quantize"
    bits: int = Field(ge=2, le=16)


class RescaleConfig(StrictModel):
    """``pinchpoint.compress.rescale``: a control, which changes the scale and leaves the structure."""

    kind: Literal["rescale"] = "rescale"
    factor: float = Field(gt=0, allow_inf_nan=False)


def _kind(content: object) -> str:
    return str(content.get("kind") if isinstance(content, dict) else getattr(content, "kind", None))


CompressConfig = Annotated[
    Annotated[PruneConfig, Tag("prune")]
    | Annotated[FactorizeConfig, Tag("factorize")]
    | Annotated[QuantizeConfig, Tag("quantize")]
    | Annotated[RescaleConfig, Tag("rescale")],
    Discriminator(
        _kind,
        custom_error_type="compress_kind",
        custom_error_message="its kind should be prune, factorize, quantize or rescale",
    ),
]


class SurrogateConfig(StrictModel):
    """The model on which examples are made for this one: its own cell with values at dotted paths replaced."""

    set: dict[str, Any] = Field(default={})
    seed_shift: int = Field(default=1000, ge=0, description="added to the seed, so that it is no twin")


class Cell(Recipe):
    """A recipe, what is done to the trained model (first ``transfer``, then ``compress``), and how it is judged."""

    transfer: TransferConfig | None = None
    compress: CompressConfig | None = None
    surrogate: SurrogateConfig | None = None
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _whole(self) -> Cell:
        asked = "transferred" in self.audit.stages
        if asked != (self.surrogate is not None):
            seen = "audit.stages without transferred" if self.surrogate else "no surrogate"
            raise ConfigError("a surrogate and the stage transferred come together", seen, "give both or none")
        if "retrieval" in self.audit.stages and not isinstance(self.model, ZeroShotConfig):
            raise ConfigError(
                "retrieval needs a model that reads captions", self.model.name, "use model.name clip:NAME"
            )
        return self

    @property
    def judged_data(self) -> DataConfig:
        """What the model is judged on."""
        return self.data if self.transfer is None else self.transfer.data
