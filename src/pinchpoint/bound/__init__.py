"""Numbers that hold for every input (paper, section 3)."""

from pinchpoint.bound.certificates import (
    certified_accuracy,
    certified_radii,
    gap_bound,
    gap_bound_binary,
    gap_bound_from_margins,
    head_factor,
    radii_from_margins,
)
from pinchpoint.bound.lipschitz import Lipschitz, Margins, encoder, lipschitz, margins
from pinchpoint.bound.local import local_margins, locally_certified
from pinchpoint.bound.methods.alignment import Alignment, alignment
from pinchpoint.bound.methods.structure import StructureScale, structure_curve, structure_scale
from pinchpoint.bound.network.operations import HasLipschitz
from pinchpoint.bound.network.trace import Network, trace

__all__ = [
    "Alignment",
    "HasLipschitz",
    "Lipschitz",
    "Margins",
    "Network",
    "StructureScale",
    "alignment",
    "certified_accuracy",
    "certified_radii",
    "encoder",
    "gap_bound",
    "gap_bound_binary",
    "gap_bound_from_margins",
    "head_factor",
    "lipschitz",
    "local_margins",
    "locally_certified",
    "margins",
    "radii_from_margins",
    "structure_curve",
    "structure_scale",
    "trace",
]
