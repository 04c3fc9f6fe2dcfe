"""The numbers that a study compares: one row a metric, which tables, claims, sentences, pages and glossary all read.

A new column of the study's report is a row here and the field of the record that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from pinchpoint.records.base import NORMS


@dataclass(frozen=True)
class Metric:
    """A number of a trained model.

    Attributes:
        key: its name in records, claims and conditions; with ``_linf``, ``_l2`` or ``_l1`` behind it where ``per_norm``.
        title: its name on a page.
        phrase: its name in the middle of a sentence.
        meaning: one sentence for the glossary.
        equation: in plain characters, with ``_`` before a subscript.
        symbol: the usual abbreviation, where there is one.
        head: head of its column in the table of models; none where it has no column.
        stage: kind of the stage whose record holds it; none where it is computed from others.
        path: the fields that lead to it in what that stage found.
        per_norm: measured under each judged norm.
        on_curve: known at every budget of the curve.
        has_budget: depends on the budget eps, and not on the norm alone.
        is_share: a share of samples, told in points of a hundred where two are compared.
        correlated: ranked against compressibility in every family's summary.
        in_terminal: a column of the tables on the terminal.
    """

    key: str
    title: str
    phrase: str
    meaning: str
    equation: str = ""
    symbol: str = ""
    head: str = ""
    stage: str | None = None
    path: tuple[str, ...] = ()
    per_norm: bool = True
    on_curve: bool = False
    has_budget: bool = True
    is_share: bool = False
    correlated: bool = True
    in_terminal: bool = False

    def keys(self) -> tuple[str, ...]:
        """Its columns in a study's table of models.

        >>> METRICS["gap"].keys(), METRICS["clean_accuracy"].keys()
        (('gap_linf', 'gap_l2', 'gap_l1'), ('clean_accuracy',))
        """
        return tuple(f"{self.key}_{norm}" for norm in NORMS) if self.per_norm else (self.key,)


def _recall(direction: str, title: str, owner: str, meaning: str) -> Iterable[Metric]:
    """Recall among the 1, 5 and 10 nearest."""
    for k in (1, 5, 10):
        yield Metric(
            f"recall_{direction}_{k}",
            f"{title}, k = {k}",
            f"recall at {k} of {owner}",
            meaning,
            head=f"{title.removeprefix('Recall, ')}, k = {k}",
            stage="retrieval",
            path=(f"{direction}_{k}",),
            per_norm=False,
            is_share=True,
        )


_ALL = (
    Metric(
        "compressibility",
        "Compressibility",
        "compressibility",
        "1 − residual at a fixed share of k, averaged over the encoder’s layers (all but the last): 0 to 1, higher is more "
        "compressible. Each family is seen in one view, neuron or spectral.",
        "1 − residual(θ, k, q)",
        head="in this view",
        per_norm=False,
        correlated=False,
    ),
    Metric(
        "neuron",
        "Neuron view",
        "neuron compressibility",
        "Compressibility of the ℓ₁ norms of a weight matrix’s rows: a few strong neurons or filters.",
        "θ = (‖w₁‖₁, …, ‖w_h‖₁)",
        head="neuron",
        stage="profile",
        path=("profile", "neuron"),
        per_norm=False,
        correlated=False,
    ),
    Metric(
        "spectral",
        "Spectral view",
        "spectral compressibility",
        "Compressibility of a weight matrix’s singular values: nearly low rank.",
        "θ = (σ₁, …, σ_r)",
        head="spectral",
        stage="profile",
        path=("profile", "spectral"),
        per_norm=False,
        correlated=False,
    ),
    Metric(
        "clean_accuracy",
        "Clean accuracy",
        "clean accuracy",
        "Share of test samples classified correctly, without an attack.",
        symbol="SA",
        head="SA",
        stage="profile",
        path=("clean_accuracy",),
        per_norm=False,
        is_share=True,
    ),
    Metric(
        "parameters",
        "Parameters",
        "parameters",
        "How many numbers the model is made of.",
        stage="profile",
        path=("parameters",),
        per_norm=False,
        correlated=False,
    ),
    Metric(
        "epochs",
        "Epochs",
        "epochs",
        "Passes over the training data until training stopped.",
        stage="train",
        path=("epochs",),
        per_norm=False,
        correlated=False,
    ),
    *_recall(
        "image_to_text",
        "Recall, image to text",
        "an image’s captions",
        "Share of the images for which one of their own captions is among the k captions that the model finds nearest, "
        "without an attack.",
    ),
    *_recall(
        "text_to_image",
        "Recall, text to image",
        "a caption’s image",
        "Share of the captions whose own image is among the k images that the model finds nearest, without an attack.",
    ),
    Metric(
        "robust_accuracy",
        "Robust accuracy",
        "robust accuracy",
        "Share of test samples that stay correctly classified under the strongest attack tried within the budget. It is an "
        "upper bound on the truth: a stronger attack could leave less.",
        symbol="RA",
        head="RA",
        stage="attack",
        path=("robust_accuracy",),
        on_curve=True,
        is_share=True,
        in_terminal=True,
    ),
    Metric(
        "robust_over_clean",
        "RA / SA",
        "robust over clean accuracy",
        "The share of the correctly classified samples that stay correct under attack.",
        "RA / SA",
        head="RA / SA",
        on_curve=True,
        is_share=True,
        in_terminal=True,
    ),
    Metric(
        "universal_accuracy",
        "Universal accuracy",
        "accuracy under one universal perturbation",
        "Accuracy under one single perturbation for all inputs, fitted on training data and judged on test data. Its budget "
        "may be larger than that of the attacks; the table of models gives it.",
        head="universal",
        stage="universal",
        path=("accuracy",),
        is_share=True,
        in_terminal=True,
    ),
    Metric(
        "query_accuracy",
        "Query accuracy",
        "accuracy under queries",
        "Share of test samples that stay correctly classified under an attack that sees only the model’s answers, a limited "
        "number of them a sample. It can exceed RA, whose attacks know the weights.",
        head="queries",
        stage="query",
        path=("robust_accuracy",),
        is_share=True,
    ),
    Metric(
        "transferred_accuracy",
        "Transferred accuracy",
        "accuracy under transferred examples",
        "Share of test samples that stay correctly classified under examples made on another model, the surrogate, without "
        "any look at this one.",
        head="transferred",
        stage="transferred",
        path=("robust_accuracy",),
        is_share=True,
    ),
    Metric(
        "certified_accuracy",
        "Certified accuracy",
        "certified accuracy",
        "Share of test samples whose certified radius is at least ε: no attack whatever can change them. Never above RA.",
        "radius(x) = min_j (logit_y − logit_j) / (L_p ‖c_j − c_y‖_{p*})",
        head="certified",
        on_curve=True,
        is_share=True,
        correlated=False,
    ),
    Metric(
        "gap",
        "Loss gap",
        "the loss gap",
        "Adversarial loss found by the attacks minus clean loss (cross-entropy, in nats).",
        "gap = F_adv − F",
        head="gap",
        in_terminal=True,
    ),
    Metric(
        "gap_bound",
        "Bound on the loss gap",
        "the bound on the gap",
        "What Corollary 3.3 of the paper, in its multi-class form, allows the loss gap to be. It holds for every attack.",
        "F_adv − F ≤ ε L_p E_y[max_{j≠y} ‖c_j − c_y‖_{p*}]",
        head="gap bound",
        stage="bound",
        path=("gap_bound",),
    ),
    Metric(
        "lipschitz",
        "Lipschitz constant L",
        "the Lipschitz bound",
        "The most by which the encoder can stretch a change of its input. The upper bound holds for every input; the lower "
        "bound was reached at some input.",
        "‖Φ(x) − Φ(x′)‖_p ≤ L_p ‖x − x′‖_p",
        head="L upper",
        stage="bound",
        path=("bounds", "lipschitz"),
        has_budget=False,
    ),
    Metric(
        "lipschitz_structure",
        "Structure × scale",
        "the structure × scale bound",
        "The Lipschitz bound of Theorem 3.1, from compressibility (structure) and the Frobenius norm (scale) alone. It is "
        "never below the upper bound from exact norms.",
        "‖W‖₂ ≤ (1 − residual)/(1 − spread) · √r/k · ‖W‖_F",
        head="L structure",
        stage="bound",
        path=("bounds", "lipschitz_structure"),
        has_budget=False,
        correlated=False,
    ),
    Metric(
        "lipschitz_lower",
        "Lower bound on the Lipschitz constant",
        "the lower Lipschitz bound",
        "The largest quotient of two outputs’ distance over their inputs’ that was reached.",
        stage="bound",
        path=("bounds", "lipschitz_lower"),
        has_budget=False,
        correlated=False,
    ),
    Metric(
        "alignment",
        "Alignment",
        "alignment",
        "Share of a perturbation’s length that lies in the span of a layer’s first k right singular vectors; a random "
        "direction has √(k/d). Tables and correlations take the first layer.",
        "‖V_{k}ᵀ a‖₂ / ‖a‖₂",
        head="alignment",
        stage="mechanism",
        path=("layers", "0", "alignment"),
    ),
    Metric(
        "alignment_baseline",
        "Alignment of a random direction",
        "the alignment of a random direction",
        "What alignment a random perturbation has.",
        "√(k/d)",
        stage="mechanism",
        path=("layers", "0", "baseline"),
        correlated=False,
    ),
    Metric(
        "amplification",
        "Amplification",
        "amplification",
        "How much of a layer’s output a perturbation changes, relative to its length, averaged over samples. Tables and "
        "correlations take the representation that the last layer reads.",
        "‖z_adv − z‖₂ / ‖z‖₂",
        head="amplification",
        stage="mechanism",
        path=("amplification",),
    ),
)

METRICS = MappingProxyType({metric.key: metric for metric in _ALL})
"""By key, in the order of tables."""


def metric_keys(*, per_norm: bool | None = None, stage: str | None = None) -> tuple[str, ...]:
    """Keys of metrics, all or those measured with or without a norm, or by one kind of stage.

    >>> metric_keys(stage="query")
    ('query_accuracy',)
    """
    return tuple(
        key for key, metric in METRICS.items() if per_norm in (None, metric.per_norm) and stage in (None, metric.stage)
    )
