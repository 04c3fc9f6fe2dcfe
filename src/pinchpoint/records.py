"""What is written down about a model: plain typed records, no torch, no computing.

Every number here was computed elsewhere, once. Records turn into JSON and into rows of a data frame; the report reads
nothing else. A value that could not be computed is ``None`` and its reason stands in ``warnings``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning; part of every run's id."""

Norm = Literal["linf", "l2"]
"""The two norms of the paper. One spelling everywhere."""


class Record(BaseModel):
    """Base of all records: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class View(Record):
    """One view (neuron: row l1 norms; spectral: singular values) of one layer's compressibility.

    ``residual`` and ``spread`` are taken at ``k``; ``k_for_target`` is the smallest k with residual <= ``target``.
    ``values`` are the magnitudes in descending order, divided by their sum (at most 256 of them, evenly spaced in rank,
    with their ranks in ``ranks``, counted from 1).
    """

    n: int
    k: int
    q: float
    residual: float
    spread: float
    target: float
    k_for_target: int
    ranks: list[int]
    values: list[float]


class LayerProfile(Record):
    """Compressibility of one layer's h x d matrix. Norms are those of that matrix."""

    name: str
    kind: str
    rows: int
    columns: int
    parameters: int
    frobenius: float
    matrix_linf: float
    matrix_l2: float
    effective_rank: float
    stable_rank: float
    neuron: View
    spectral: View


class Skipped(Record):
    """A module with parameters that is not seen as a linear operator, and why."""

    name: str
    kind: str
    reason: str


class Profile(Record):
    """Compressibility of a model: its layers in order, and what was skipped.

    ``neuron`` and ``spectral`` are the network's compressibility: 1 - residual at the chosen share of k, averaged over
    the encoder's layers (all but the last one).
    """

    layers: list[LayerProfile]
    skipped: list[Skipped]
    neuron: float
    spectral: float

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a layer, ready for ``polars.DataFrame`` or ``pandas.DataFrame``."""
        table = []
        for layer in self.layers:
            row: dict[str, Any] = layer.model_dump(exclude={"neuron", "spectral"})
            for view_name in ("neuron", "spectral"):
                view: View = getattr(layer, view_name)
                row |= {f"{view_name}_{key}": value for key, value in view if key not in ("ranks", "values")}
            table.append(row)
        return table


class LayerBound(Record):
    """Theorem 3.1 for one layer: ``operator_norm <= structure * scale``, with the k that makes it tightest."""

    name: str
    operator_norm: float
    structure: float
    scale: float
    bound: float
    k: int
    k_row: int | None


class Bounds(Record):
    """Certified numbers for one norm: they hold for every input, under ``assumptions``.

    ``lipschitz_lower <= true encoder constant <= lipschitz <= lipschitz_structure``. ``median_radius`` is over the
    correctly classified samples.
    """

    norm: Norm
    lipschitz: float
    lipschitz_structure: float
    lipschitz_lower: float
    head_factor: float
    layers: list[LayerBound]
    median_radius: float | None
    assumptions: list[str]


class CurvePoint(Record):
    """Accuracies under one budget."""

    eps: float
    robust_accuracy: float
    certified_accuracy: float | None


class Robustness(Record):
    """What attacks left of one model under one norm, decided by a check independent of the attack.

    ``gap`` is the adversarial loss found minus the clean loss (cross-entropy, nats); ``gap_bound`` is what Corollary 3.3
    allows. ``universal_accuracy`` is judged at a budget of its own, ``universal_eps``. ``settled`` counts the samples by
    the stage that settled them.
    """

    norm: Norm
    eps: float
    robust_accuracy: float
    robust_over_clean: float | None
    clean_loss: float
    adversarial_loss: float
    gap: float
    gap_bound: float | None
    universal_accuracy: float | None
    universal_eps: float | None = None
    settled: dict[str, int]
    curve: list[CurvePoint]


class LayerMechanism(Record):
    """Where perturbations point in one layer's input, and how large they have become there.

    ``alignment`` is the share of the perturbation's l2 norm that lies in the span of the layer's first ``k`` right
    singular vectors, averaged over samples; ``baseline`` is sqrt(k / d), what a random direction has. ``amplification``
    is the mean of ||z_adv - z||_2 / ||z||_2 at the layer's output.
    """

    name: str
    k: int
    alignment: float
    baseline: float
    amplification: float


class Mechanism(Record):
    """Mechanism under one norm. ``amplification`` is that of the encoder's output, the head's input."""

    norm: Norm
    eps: float
    amplification: float
    layers: list[LayerMechanism]


class Audit(Record):
    """Everything known about one model on one data set."""

    clean_accuracy: float
    samples: int
    profile: Profile
    bounds: list[Bounds]
    robustness: list[Robustness]
    mechanism: list[Mechanism]
    seconds: dict[str, float]
    warnings: list[str]


class Training(Record):
    """How a model came to be."""

    epochs: int
    best_epoch: int
    validation_loss: float
    validation_accuracy: float
    seconds: float


class Run(Record):
    """One trained and audited model: the whole configuration, seed, versions and numbers. ``id`` hashes the config."""

    id: str
    schema_version: int
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    machine: str
    training: Training
    audit: Audit


class Member(Record):
    """A run's place in a study: in which family, at which level of that family's grid."""

    family: str
    level: int
    label: str
    seed: int
    run: str


class Correlation(Record):
    """Spearman's rho of a metric with ``against`` (by default the family's compressibility), over models and by seed."""

    metric: str
    against: str = "compressibility"
    norm: Norm | None
    eps: float | None
    rho: float | None
    p_value: float | None
    models: int
    rho_by_seed: list[float | None]


class Level(Record):
    """One level of a family: means over seeds and the standard deviation between them (None for one seed)."""

    label: str
    level: int
    seeds: int
    mean: dict[str, float | None]
    std: dict[str, float | None]


class Peak(Record):
    """Robust accuracy at the judged budget rises and then falls along a family's levels, in every one of its seeds.

    ``label`` is the level with the highest mean; in each seed some inner level lies above both ends.
    """

    norm: Norm
    label: str


class Family(Record):
    """A family of models of rising compressibility, summarised."""

    name: str
    title: str
    view: Literal["neuron", "spectral"]
    levels: list[Level]
    correlations: list[Correlation]
    peaks: list[Peak] = []
    findings: list[str]


class Summary(Record):
    """A study summarised: what was found, in sentences computed from the records, families, and one row a model."""

    study: str
    title: str
    headline: str
    families: list[Family]
    bound_vs_gap: list[Correlation] = []
    models: list[dict[str, Any]]
    members: list[Member]
    notes: list[str]
    versions: dict[str, str]
    machine: str
