"""Numbers that hold for every input (paper, section 3)."""

from pinchpoint.bound.lipschitz import HasLipschitz, Lipschitz, encoder, lipschitz
from pinchpoint.bound.robustness import certified_accuracy, certified_radii, gap_bound, gap_bound_binary, head_factor
from pinchpoint.bound.structure import StructureScale, structure_curve, structure_scale

__all__ = [
    "HasLipschitz",
    "Lipschitz",
    "StructureScale",
    "certified_accuracy",
    "certified_radii",
    "encoder",
    "gap_bound",
    "gap_bound_binary",
    "head_factor",
    "lipschitz",
    "structure_curve",
    "structure_scale",
]
