"""What the words and figures of the page mean: one sentence each, with the equation where there is one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup, escape


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


TERMS: dict[str, Term] = {
    "residual": Term(
        "Residual",
        "The share of a vector that is lost when only its k largest entries are kept. Small means compressible.",
        "residual(θ, k, q) = ‖θ − θ_k‖_q / ‖θ‖_q",
    ),
    "compressibility": Term(
        "Compressibility",
        "1 − residual at a fixed share of k, averaged over the encoder’s layers (all but the last): 0 to 1, higher is more "
        "compressible. Each family is seen in one view, neuron or spectral.",
        "1 − residual(θ, k, q)",
    ),
    "neuron": Term(
        "Neuron view",
        "Compressibility of the ℓ₁ norms of a weight matrix’s rows: a few strong neurons or filters.",
        "θ = (‖w₁‖₁, …, ‖w_h‖₁)",
    ),
    "spectral": Term(
        "Spectral view",
        "Compressibility of a weight matrix’s singular values: nearly low rank.",
        "θ = (σ₁, …, σ_r)",
    ),
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
    "clean_accuracy": Term("Clean accuracy (SA)", "Share of test samples classified correctly, without an attack."),
    "robust_accuracy": Term(
        "Robust accuracy (RA)",
        "Share of test samples that stay correctly classified under the strongest attack tried within the budget. It is an "
        "upper bound on the truth: a stronger attack could leave less.",
    ),
    "robust_over_clean": Term(
        "RA / SA", "The share of the correctly classified samples that stay correct under attack.", "RA / SA"
    ),
    "universal_accuracy": Term(
        "Universal accuracy",
        "Accuracy under one single perturbation for all inputs, fitted on training data and judged on test data. Its budget "
        "may be larger than that of the attacks; the table of models gives it.",
    ),
    "query_accuracy": Term(
        "Query accuracy",
        "Share of test samples that stay correctly classified under an attack that sees only the model’s answers, a limited "
        "number of them a sample. It can exceed RA, whose attacks know the weights.",
    ),
    "transferred_accuracy": Term(
        "Transferred accuracy",
        "Share of test samples that stay correctly classified under examples made on another model, the surrogate, without "
        "any look at this one.",
    ),
    "recall_image_to_text": Term(
        "Recall, image to text",
        "Share of the images for which one of their own captions is among the k captions that the model finds nearest, "
        "without an attack.",
    ),
    "recall_text_to_image": Term(
        "Recall, text to image",
        "Share of the captions whose own image is among the k images that the model finds nearest, without an attack.",
    ),
    "certified_accuracy": Term(
        "Certified accuracy",
        "Share of test samples whose certified radius is at least ε: no attack whatever can change them. Never above RA.",
        "radius(x) = min_j (logit_y − logit_j) / (L_p ‖c_j − c_y‖_{p*})",
    ),
    "gap": Term(
        "Loss gap",
        "Adversarial loss found by the attacks minus clean loss (cross-entropy, in nats).",
        "gap = F_adv − F",
    ),
    "gap_bound": Term(
        "Bound on the gap",
        "What Corollary 3.3 of the paper, in its multi-class form, allows the loss gap to be. It holds for every attack.",
        "F_adv − F ≤ ε L_p E_y[max_{j≠y} ‖c_j − c_y‖_{p*}]",
    ),
    "lipschitz": Term(
        "Lipschitz constant L",
        "The most by which the encoder can stretch a change of its input. The upper bound holds for every input; the lower "
        "bound was reached at some input.",
        "‖Φ(x) − Φ(x′)‖_p ≤ L_p ‖x − x′‖_p",
    ),
    "lipschitz_structure": Term(
        "Structure × scale",
        "The Lipschitz bound of Theorem 3.1, from compressibility (structure) and the Frobenius norm (scale) alone. It is "
        "never below the upper bound from exact norms.",
        "‖W‖₂ ≤ (1 − residual)/(1 − spread) · √r/k · ‖W‖_F",
    ),
    "alignment": Term(
        "Alignment",
        "Share of a perturbation’s length that lies in the span of a layer’s first k right singular vectors; a random "
        "direction has √(k/d). Tables and correlations take the first layer.",
        "‖V_{k}ᵀ a‖₂ / ‖a‖₂",
    ),
    "amplification": Term(
        "Amplification",
        "How much of a layer’s output a perturbation changes, relative to its length, averaged over samples. Tables and "
        "correlations take the representation that the last layer reads.",
        "‖z_adv − z‖₂ / ‖z‖₂",
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
