"""Making a network compressible, or smaller."""

from pinchpoint.compress.factorize import Plan, factorize, lowrank_like, merge, plan
from pinchpoint.compress.interventions import ConstantFrobenius
from pinchpoint.compress.lowrank import LowRankConv2d, LowRankLinear, truncate
from pinchpoint.compress.penalties import L1, GroupLasso, NuclearNorm, Penalty, Sum

__all__ = [
    "L1",
    "ConstantFrobenius",
    "GroupLasso",
    "LowRankConv2d",
    "LowRankLinear",
    "NuclearNorm",
    "Penalty",
    "Plan",
    "Sum",
    "factorize",
    "lowrank_like",
    "merge",
    "plan",
    "truncate",
]
