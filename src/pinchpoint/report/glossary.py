"""What the words and figures of the page mean: one sentence each, with the equation where there is one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from pinchpoint.records.metrics import METRICS, Metric


@dataclass(frozen=True)
class Term:
    """A word, what it means, and its equation in plain characters."""

    name: str
    meaning: str
    equation: str = ""

    @property
    def tooltip(self) -> str:
        """Meaning and equation on one line, for hovering."""
        return f"{self.meaning} {self.equation}".strip()

    @property
    def typeset(self) -> Markup:
        """The equation with its subscripts set lower.

        >>> Term("gap", "", "F_adv − F").typeset
        Markup('F<sub>adv</sub> − F')
        """
        return Markup(
            re.sub(r"_(?:\{([^}]*)\}|(\w+))", lambda found: f"<sub>{found[1] or found[2]}</sub>", escape(self.equation))
        )


def term(metric: Metric) -> Term:
    """The entry of a metric.

    >>> term(METRICS["robust_accuracy"]).name
    'Robust accuracy (RA)'
    """
    return Term(f"{metric.title} ({metric.symbol})" if metric.symbol else metric.title, metric.meaning, metric.equation)


def _terms(*keys: str) -> dict[str, Term]:
    return {key: term(METRICS[key]) for key in keys}


TERMS: dict[str, Term] = {
    "residual": Term(
        "Residual",
        "The share of a vector that is lost when only its k largest entries are kept. Small means compressible.",
        "residual(θ, k, q) = ‖θ − θ_k‖_q / ‖θ‖_q",
    ),
    **_terms("compressibility", "neuron", "spectral"),
    "level": Term(
        "Family and level",
        "A family is a set of models trained with rising pressure to be compressible; a level is one strength of that "
        "pressure, from none to strong. Every level is trained with several seeds.",
    ),
    "eps": Term(
        "Budget ε",
        "How far an attack may move an input, in input units and in the norm named: every coordinate by at most ε (ℓ∞), or "
        "the Euclidean length of the change at most ε (ℓ₂), or all changes together at most ε (ℓ₁).",
        "‖x_adv − x‖_p ≤ ε",
    ),
    **_terms(
        "clean_accuracy",
        "robust_accuracy",
        "robust_over_clean",
        "universal_accuracy",
        "query_accuracy",
        "transferred_accuracy",
    ),
    "recall_image_to_text": Term("Recall, image to text", METRICS["recall_image_to_text_1"].meaning),
    "recall_text_to_image": Term("Recall, text to image", METRICS["recall_text_to_image_1"].meaning),
    **_terms(
        "certified_accuracy", "gap", "gap_bound", "lipschitz", "lipschitz_structure", "alignment", "amplification"
    ),
    "rho": Term(
        "Spearman’s ρ",
        "Agreement of two rankings, from −1 (opposite) to 1 (the same); 0 is none. Here: a figure against the family’s "
        "compressibility over all its models. Below 0, the figure falls as models get more compressible.",
    ),
    "effect": Term(
        "Effect",
        "How large what a claim speaks of is. For a trend, Spearman’s ρ within each seed, averaged over seeds; for a "
        "contrast, the mean difference between the two sides for the same seeds, in points of a hundred for accuracies. The "
        "interval below it is over seeds, with the confidence it can claim from so few.",
    ),
    "p_corrected": Term(
        "Corrected p",
        "A p-value is how often chance alone would show at least as much. Many claims give chance many tries, so each p is "
        "raised for the number of tests of the study (by Holm’s rule, if the sentence names no other); below 0.05 counts.",
    ),
    "page": Term(
        "Page’s test",
        "Tests a trend by the order of the levels within each seed: would random orders, seed by seed, agree as well with "
        "the order claimed? Two-sided, and without an assumption on how values spread.",
        "L = Σ_seeds Σ_levels rank(x) · rank(y)",
    ),
    "paired_t": Term(
        "Paired t",
        "Tests whether the mean of the differences between two sides, one a seed, is other than zero. Assumes that the "
        "differences of seeds spread about as a normal distribution does.",
        "t = mean(d) / (std(d) / √n)",
    ),
}
"""In the order in which the glossary shows them."""
