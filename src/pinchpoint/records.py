"""What is written down about a model: plain typed records, no torch, no computing.

Every number here was computed elsewhere, once. Records turn into JSON and into rows of a data frame; the report reads
nothing else. A value that could not be computed is ``None`` and its reason stands in ``warnings``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import polars

SCHEMA_VERSION = 2
"""Raised when a field changes its meaning; part of every run's id."""

Norm = Literal["linf", "l2"]
"""The two norms of the paper. One spelling everywhere."""

ThreatNorm = Literal["linf", "l2", "l1"]
"""The norms an attack can be held to; bounds and audits know the paper's two."""


class Record(BaseModel):
    """Base of all records: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ViewName = Literal["neuron", "spectral", "entrywise", "column"]
"""The four views of a layer's compressibility."""


class View(Record):
    """One view of one layer's compressibility, drawn from n magnitudes theta:

    neuron (l1 norms of rows), spectral (singular values), entrywise (all entries), column (l1 norms of columns), and for
    attention head (l1 norm of each head's block).

    ``residual`` and ``spread`` are taken at ``k``; ``k_for_target`` is the smallest k with residual <= ``target``.
    ``participation_ratio`` is (sum theta)^2 / sum theta^2, ``pq_index`` that of Diao et al. 2023 with p = 1/2, q = 1.
    ``values`` are the magnitudes in descending order, divided by their sum, and ``residuals`` the residuals at the same
    ranks: at most 256 of them, evenly spaced in rank, with their ranks in ``ranks``, counted from 1.
    """

    n: int
    k: int
    q: float
    residual: float
    spread: float
    target: float
    k_for_target: int
    participation_ratio: float
    pq_index: float
    ranks: list[int]
    values: list[float]
    residuals: list[float]


class LayerProfile(Record):
    """Compressibility of one layer's h x d matrix.

    ``matrix_linf`` and ``matrix_l2`` are norms of that matrix. ``linf`` and ``l2_lower <= true norm <= l2_upper`` are those
    of the linear operator, which a convolution's matrix is not: ``norm_method`` says how they were found, or
    ``norm_reason`` why they are None. ``numerical_rank`` counts singular values above ``rank_tolerance`` times the
    largest. ``row_residual_mean`` and ``row_residual_max`` are over the rows, each at ``row_k`` of its entries.
    """

    name: str
    kind: str
    rows: int
    columns: int
    parameters: int
    frobenius: float
    matrix_linf: float
    matrix_l2: float
    linf: float | None
    l2_lower: float | None
    l2_upper: float | None
    norm_method: str | None
    norm_reason: str | None
    effective_rank: float
    stable_rank: float
    numerical_rank: int
    rank_tolerance: float
    row_k: int
    row_residual_mean: float
    row_residual_max: float
    neuron: View
    spectral: View
    entrywise: View
    column: View
    head: View | None


class Skipped(Record):
    """A module or parameter that is not seen as a linear operator, why, and how many numbers it stores."""

    name: str
    kind: str
    reason: str
    parameters: int = 0


class Profile(Record):
    """Compressibility of a model: its layers in order, and what was skipped.

    ``neuron``, ``spectral``, ``entrywise`` and ``column`` are the network's compressibility: 1 - residual at the chosen
    share of k, averaged over the encoder's layers (all but the last one). ``weighted`` holds the same averages with each
    layer counted by the entries of its matrix.
    """

    layers: list[LayerProfile]
    skipped: list[Skipped]
    neuron: float
    spectral: float
    entrywise: float
    column: float
    weighted: dict[ViewName, float]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a layer, ready for ``polars.DataFrame`` or ``pandas.DataFrame``; curves are left out."""
        views = (*get_args(ViewName), "head")
        keys = [key for key in View.model_fields if key not in ("ranks", "values", "residuals")]
        table = []
        for layer in self.layers:
            row: dict[str, Any] = layer.model_dump(exclude=set(views))
            for name in views:
                view: View | None = getattr(layer, name)
                row |= {f"{name}_{key}": getattr(view, key, None) for key in keys}
            table.append(row)
        return table

    def frame(self) -> polars.DataFrame:
        """``rows()`` as a polars data frame."""
        import polars

        return polars.DataFrame(self.rows(), infer_schema_length=None)


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

    ``lipschitz_lower <= true encoder constant <= lipschitz <= lipschitz_product <= lipschitz_structure``;
    ``lipschitz_method`` names the bound that ``lipschitz`` is; ``lipschitz_structure`` is None where a layer is too large
    to be written out. ``median_radius`` is over the correctly classified samples.
    """

    norm: Norm
    lipschitz: float
    lipschitz_method: str = "product"
    lipschitz_product: float | None = None
    lipschitz_structure: float | None
    lipschitz_lower: float
    head_factor: float
    layers: list[LayerBound]
    median_radius: float | None
    assumptions: list[str]


class UpperBound(Record):
    """A certified upper bound by one method; None with the reason where it does not apply or would not fit the budget."""

    method: str
    value: float | None
    reason: str | None


class NetworkBounds(Record):
    """The Lipschitz constant of a network from l_p to l_p: ``lower <= true constant <= upper``, both certified.

    ``uppers`` holds the upper bounds by method and ``method`` names the smallest. ``sampled`` and ``lower`` are difference
    quotients less their rounding errors, found by sampling and after ascent. ``empirical`` is the largest quotient seen:
    reached in float64, but no bound. ``encoder`` bounds the part before the head; ``margin_largest`` and ``margin_median``
    are over the constants of all differences of two logits. A number that is None has its reason in ``reasons``.
    """

    norm: Norm
    lower: float | None
    sampled: float | None
    upper: float | None
    method: str | None
    uppers: list[UpperBound]
    empirical: float
    encoder: float | None
    margin_largest: float | None
    margin_median: float | None
    reasons: dict[str, str]
    seconds: float


class OperatorBounds(Record):
    """One layer under one norm: ``lower <= ||operator|| <= upper``, and Theorem 3.1 for its matrix.

    ``matrix_norm <= structure * scale = bound`` with the k that makes it tightest; None where the layer has no matrix. The
    matrix of a convolution is its filter bank, one filter a row, and its norm is not that of the operator.
    """

    norm: Norm
    lower: float
    upper: float
    matrix_norm: float | None
    structure: float | None
    scale: float | None
    bound: float | None
    k: int | None
    k_row: int | None


class LayerBounds(Record):
    """A straight run of linear operations as it acts, batch norm folded in: ``columns`` numbers in, ``rows`` out.

    ``matrix_shape`` is that of the matrix of Theorem 3.1; ``reason`` says why there is none.
    """

    name: str
    kind: str
    rows: int
    columns: int
    matrix_shape: tuple[int, int] | None
    reason: str | None
    norms: list[OperatorBounds]


class PairBounds(Record):
    """Two layers with one activation between them: their norms' product may count ``factor`` = min(1, upper) times.

    ``lower <= A_p <= upper``, their alignment (paper, section 3), equal up to rounding where ``exact``; or a reason for
    None.
    """

    norm: Norm
    first: str
    second: str
    lower: float | None
    upper: float | None
    exact: bool | None
    factor: float
    reason: str | None


class BoundSheet(Record):
    """All that is known to hold for a network, layer by layer and as a whole, under ``assumptions``.

    ``unbounded`` names what has no Lipschitz constant here; then ``networks`` hold empirical estimates only.
    """

    input_shape: list[int]
    networks: list[NetworkBounds]
    layers: list[LayerBounds]
    pairs: list[PairBounds]
    unbounded: list[Skipped]
    assumptions: list[str]
    seconds: float


class CurvePoint(Record):
    """Accuracies under one budget."""

    eps: float
    robust_accuracy: float
    certified_accuracy: float | None


class Attacked(Record):
    """What became of each sample under one threat, decided by a check independent of the attack.

    ``robust_low`` and ``robust_high`` are the 95 % interval (Wilson) of the robust accuracy. ``stage`` names for each sample
    what settled it and ``settled`` counts them: ``clean`` (wrong without attack), ``certified`` (no attack can succeed), an
    attack, or ``survived``. ``rejected`` examples fooled the model outside ball or box and do not count.
    """

    norm: ThreatNorm
    eps: float
    robust_accuracy: float
    robust_low: float
    robust_high: float
    certified_accuracy: float | None
    settled: dict[str, int]
    stage: list[str]
    rejected: int
    curve: list[CurvePoint]
    examples: str | None
    warnings: list[str]
    seconds: float


class AttackSheet(Record):
    """One model under one attack and several threats. ``fitted_on`` counts the samples of a universal perturbation."""

    attack: str
    steps: int | None
    seed: int
    samples: int
    fitted_on: int | None
    clean_accuracy: float
    threats: list[Attacked]


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
    history: list[EpochRecord] = []


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


class Trained(Record):
    """A model trained on its own: the recipe and seed it came from, and how."""

    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    machine: str
    training: Training


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


class TransferMatrix(Record):
    """What was made on one model (a row) and tried on another (a column), in the order of ``models``.

    ``made`` says what: examples of the judged samples themselves, or one universal perturbation fitted on ``fitted_on``
    other samples. ``robust_accuracy[source][target]`` is the share of samples the target gets right under it (and, for
    examples, without it). ``finds[source][target]`` counts the samples both get right without attack and the source wrong
    under it; on ``carried[source][target]`` of these the target is wrong, too.
    """

    made: Literal["examples", "universal"]
    norm: ThreatNorm
    eps: float
    samples: int
    fitted_on: int | None
    models: list[str]
    clean_accuracy: list[float]
    robust_accuracy: list[list[float]]
    finds: list[list[int]]
    carried: list[list[int]]


class Access(Record):
    """What is left of a model under adversaries who know more or less of it: does the weakness need white-box access?

    ``white_box`` is its robust accuracy under attacks that see its gradients, ``transfer`` under examples made on each
    surrogate, ``queries`` under at most ``query_budget`` answers a sample, ``black_box`` under all surrogates' examples
    and queries together. ``only_white_box`` counts samples that fell to gradients alone, ``only_black_box`` those that
    gradients missed: many of them mean that the gradients are masked.
    """

    norm: ThreatNorm
    eps: float
    samples: int
    clean_accuracy: float
    white_box: float
    transfer: dict[str, float]
    queries: float
    query_budget: int
    black_box: float
    only_white_box: int
    only_black_box: int
