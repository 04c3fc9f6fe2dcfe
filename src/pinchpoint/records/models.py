"""How a model came to be: trained, or made smaller."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pinchpoint.records.base import Record
from pinchpoint.records.profile import Skipped


class EpochRecord(Record):
    """What one epoch of training came to. ``attacked_loss`` is the validation loss under the training's own attack."""

    number: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    attacked_loss: float | None = None


class Training(Record):
    """How a model came to be. ``stopped`` says why it ended before its last epoch; ``history`` has every epoch."""

    epochs: int
    best_epoch: int
    validation_loss: float
    validation_accuracy: float
    seconds: float
    steps: int = 0
    stopped: str | None = None
    history: list[EpochRecord] = Field(default_factory=list)


class Trained(Record):
    """A model trained on its own: the recipe and seed it came from, and how. ``normalisation`` is what its network does to
    inputs first; None in records from before it was written down."""

    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    machine: str
    normalisation: str | None = None
    training: Training


class PrunedLayer(Record):
    """One group of layers that were pruned together. ``residual`` is what its scores lost to the units that went."""

    name: str
    members: list[str]
    units: int
    kept: int
    residual: float


class Pruning(Record):
    """How a model was pruned. ``met`` is the share that went, ``threshold`` the largest price paid for a removal: the common
    target residual, where ``allocation`` is ``residual``. ``parameters_after`` leaves out what is masked, and counts
    truncated matrices as two factors where that is less. Seconds are of a forward pass of ``batch`` inputs.
    """

    unit: str
    allocation: str
    criterion: str | None
    q: float
    count: str
    ratio: float
    met: float
    threshold: float | None
    removed: bool
    steps: int
    layers: list[PrunedLayer]
    left: list[Skipped]
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    batch: int | None
    seconds_before: float | None
    seconds_after: float | None


class QuantizedLayer(Record):
    """One layer with few values a weight. ``error`` is ||W - quantized||_F / ||W||_F, ``step`` the largest distance between
    two neighbouring values. A low-rank layer's are those of the worse of its two factors."""

    name: str
    kind: str
    parameters: int
    step: float
    error: float


class Quantization(Record):
    """How a model's weights were quantised, at most ``levels`` values a scale; ``left`` has what kept its values."""

    bits: int
    levels: int
    per: str
    layers: list[QuantizedLayer]
    left: list[Skipped]


class Compressed(Record):
    """A model made smaller. Clean accuracies are of the source, of the model just before its last
    fine-tuning, and at last; None where no data were given. ``left`` has the layers that stayed as they were."""

    source: str
    how: dict[str, Any]
    data: str | None
    samples: int | None
    clean_before: float | None
    clean_cut: float | None
    clean_after: float | None
    parameters_before: int
    parameters_after: int
    left: list[Skipped]
    pruning: Pruning | None
    versions: dict[str, str]
    machine: str
