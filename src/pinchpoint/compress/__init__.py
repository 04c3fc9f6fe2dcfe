"""Making a network compressible, or smaller."""

from pinchpoint.compress.factorize import LowRankLinear, truncate
from pinchpoint.compress.interventions import ConstantFrobenius
from pinchpoint.compress.penalties import L1, GroupLasso, NuclearNorm, Penalty, Sum

__all__ = ["L1", "ConstantFrobenius", "GroupLasso", "LowRankLinear", "NuclearNorm", "Penalty", "Sum", "truncate"]
