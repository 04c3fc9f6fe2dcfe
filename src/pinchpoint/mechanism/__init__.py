"""Where perturbations point, and how much each layer amplifies them (paper, section 4).

``gains`` follows perturbations through every linear operator of any classifier, beside random ones of the same length.
"""

from pinchpoint.mechanism.directions import alignment, baseline, right_singular_vectors
from pinchpoint.mechanism.gains import LayerGain, gains

__all__ = [
    "LayerGain",
    "alignment",
    "baseline",
    "gains",
    "right_singular_vectors",
]
