"""Making a network compressible, or smaller."""

from pinchpoint.compress.constraints import ConstantFrobenius, FrobeniusBall, Intervention, InTurn, SpectralBall
from pinchpoint.compress.factorize import Plan, factorize, lowrank_like, merge, plan
from pinchpoint.compress.lowrank import LowRankConv2d, LowRankLinear, truncate
from pinchpoint.compress.penalties.alignment import AlignmentPenalty
from pinchpoint.compress.penalties.base import Penalty, Sum
from pinchpoint.compress.penalties.group_lasso import GroupLasso
from pinchpoint.compress.penalties.nuclear_norm import NuclearNorm
from pinchpoint.compress.penalties.sparsity import L1, Hoyer
from pinchpoint.compress.penalties.spread import SpreadControl
from pinchpoint.compress.quantize import quantize
from pinchpoint.compress.rescale import rescale

__all__ = [
    "L1",
    "AlignmentPenalty",
    "ConstantFrobenius",
    "FrobeniusBall",
    "GroupLasso",
    "Hoyer",
    "InTurn",
    "Intervention",
    "LowRankConv2d",
    "LowRankLinear",
    "NuclearNorm",
    "Penalty",
    "Plan",
    "SpectralBall",
    "SpreadControl",
    "Sum",
    "factorize",
    "lowrank_like",
    "merge",
    "plan",
    "quantize",
    "rescale",
    "truncate",
]
