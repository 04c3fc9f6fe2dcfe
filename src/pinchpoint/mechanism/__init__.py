"""Where perturbations point, and how much each layer amplifies them (paper, section 4).

``trace`` follows perturbations through the fully connected layers, as the paper does; ``gains`` through every linear
operator of any classifier, beside random perturbations of the same length.
"""

from pinchpoint.mechanism.directions import alignment, baseline, right_singular_vectors
from pinchpoint.mechanism.gains import LayerGain, gains
from pinchpoint.mechanism.path import LayerTrace, relative_change, trace

__all__ = [
    "LayerGain",
    "LayerTrace",
    "alignment",
    "baseline",
    "gains",
    "relative_change",
    "right_singular_vectors",
    "trace",
]
