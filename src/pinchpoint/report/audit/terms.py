"""The words of an audit's report: those of the study's glossary that it needs, and its own; and where the docs say more."""

from __future__ import annotations

from importlib import metadata

from pinchpoint.report.glossary import TERMS as SHARED
from pinchpoint.report.glossary import Term

_OWN: dict[str, Term] = {
    "interval": Term(
        "95 % interval",
        "Another sample of the same size from the same source would give an accuracy in about this range (Wilson’s "
        "interval). It shrinks with the square root of the number of samples.",
        "(p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)",
    ),
    "settled": Term(
        "What settled a sample",
        "Attacks run one after the other, and a sample leaves with the first that fools the model. A sample counts as "
        "robust only if it withstood all of them or is certified.",
    ),
    "universal_accuracy": Term(
        "Universal accuracy",
        "Accuracy under one single perturbation for all inputs, at the same budget. Low means that one pattern, made once, "
        "breaks the model.",
    ),
    "median_radius": Term(
        "Median certified radius",
        "Half of the correctly classified samples provably keep their answer under every change up to this size.",
        "radius(x) = min_j (logit_y − logit_j) / (L_p ‖c_j − c_y‖_{p*})",
    ),
    "share": Term(
        "Share of the risk",
        "The layer’s part of what all layers add to an attack beyond what they do to random noise. The shares are a ranking "
        "by measurement, not a proof: in a residual network the branches beside each other each get their own gain.",
        "share_l = e_l / Σ e,   e_l = max(0, gain_l − random_l)",
    ),
    "gain": Term(
        "Gain",
        "By how much a layer raises the relative size of an adversarial perturbation, as a logarithm, averaged over "
        "samples: 0 leaves it as it is, 0.69 doubles it, below 0 damps it.",
        "gain = mean log(r_out / r_in),   r = ‖Δz‖₂ / ‖z‖₂",
    ),
    "random_gain": Term(
        "Random gain",
        "The same for random perturbations as long as the adversarial ones: what the layer does to any noise. A gain well "
        "above it says that the attack uses this layer.",
        "random = mean log(r_out / r_in) for random Δx",
    ),
    "amplification": Term(
        "Amplification",
        "How much of the layer’s output the adversarial perturbation changes, relative to its length.",
        "‖z_adv − z‖₂ / ‖z‖₂",
    ),
    "alignment": Term(
        "Alignment",
        "Share of the perturbation’s length, at the layer’s input, that lies in the directions which the layer stretches "
        "most (its first k right singular vectors).",
        "‖V_{k}ᵀ a‖₂ / ‖a‖₂",
    ),
    "alignment_baseline": Term(
        "Alignment of a random direction",
        "What a direction drawn at random has. An alignment well above it says that the attack aims at what the layer "
        "stretches most.",
        "√(k / d)",
    ),
    "operator_norm": Term(
        "Operator norm",
        "The most by which the layer, as it acts on its whole input, can stretch any change of it. A convolution’s is not "
        "that of its filters written as a matrix, to which structure and scale belong.",
        "max ‖f(x) − f(x′)‖₂ / ‖x − x′‖₂",
    ),
    "structure": Term(
        "Structure",
        "What concentration alone adds to the norm of the layer’s matrix: 1 if all directions are stretched alike, larger "
        "the fewer of them carry the layer. Compression raises it.",
        "structure = ‖W‖₂ √r / ‖W‖_F",
    ),
    "scale": Term(
        "Scale",
        "What the size of the weights adds to the norm of the layer’s matrix, however they are arranged. Weight decay "
        "lowers it.",
        "scale = ‖W‖_F / √r",
    ),
    "neighbour": Term(
        "Neighbour factor",
        "How well what the layer before stretches most meets what this layer stretches most. 1: they work together fully; "
        "smaller: the product of the two norms overstates what they do together.",
        "min(1, A_p(W_l, W_{l−1}))",
    ),
    "neuron": SHARED["neuron"],
    "spectral": SHARED["spectral"],
    "stable_rank": Term(
        "Stable rank",
        "How many directions carry the layer, counted by energy. Small beside its width: few directions do the work, and an "
        "attack needs to find only those.",
        "‖W‖_F² / ‖W‖₂²",
    ),
    "effective_rank": Term(
        "Effective rank",
        "How many directions carry the layer, counted by the entropy of its singular values.",
        "exp(−Σ p_i log p_i),   p_i = σ_i / Σ σ",
    ),
    "predicted": Term(
        "Predicted effect",
        "What the number should become, by a rule stated beside it and fixed before the measurement. If what is measured "
        "lies outside the interval, the prediction has failed, and the report says so.",
    ),
    "held": Term(
        "Held",
        "Whether what was measured lies within the predicted interval. One trial on one model: held is support, no proof.",
    ),
    "difference": Term(
        "Difference",
        "Second model minus first on the very same samples, in points of a hundred, with its 95 % interval for "
        "pairs (Newcombe 1998).",
    ),
    "p_value": Term(
        "p (McNemar)",
        "How often chance alone would split the samples that only one of the two models gets right at least as unevenly, "
        "were the models equally good. Below 0.05 is usually called significant.",
        "p = P(|B − n/2| ≥ |b − n/2|),   B ~ Binomial(n, 1/2)",
    ),
    "discordant": Term(
        "Right in one only",
        "Samples that only the first, or only the second, of two models gets right under this threat. They alone decide "
        "whether the models differ.",
    ),
}

_KEPT = ("clean_accuracy", "robust_accuracy", "certified_accuracy", "eps", "gap", "gap_bound", "lipschitz", "residual")

TERMS: dict[str, Term] = {name: SHARED[name] for name in _KEPT} | _OWN
"""In the order in which the glossary shows them."""

PAGES = {
    "attacks": ("robust_accuracy", "universal_accuracy", "settled", "eps"),
    "bounds": (
        "certified_accuracy", "median_radius", "gap_bound", "lipschitz", "structure", "scale", "operator_norm", "neighbour",
    ),
    "compress": ("residual", "neuron", "spectral", "stable_rank", "effective_rank"),
    "audit": ("share", "gain", "random_gain", "predicted", "held", "difference", "p_value"),
}  # fmt: skip
"""Pages of the docs, and the terms each explains."""


def docs(term: str) -> str | None:
    """The page of the docs that says more about a term, None where the package does not name its docs' address.

    The address is that of ``Documentation`` among the package's URLs, so it is written in one place only.
    """
    site = address()
    page = next((name for name, terms in PAGES.items() if term in terms), None)
    return f"{site}/{page}/" if site and page else None


def address() -> str | None:
    """Where the docs are published, by the metadata of the installed package."""
    urls = metadata.metadata("pinchpoint").get_all("Project-URL") or []
    named = dict(url.split(", ", 1) for url in urls)
    found = named.get("Documentation")
    return found.rstrip("/") if found else None
