"""Making a network compressible, or smaller."""

from pinchpoint.compress.factorize import Plan, factorize, lowrank_like, merge, plan
from pinchpoint.compress.interventions import ConstantFrobenius, FrobeniusBall, Intervention, InTurn, SpectralBall
from pinchpoint.compress.lowrank import LowRankConv2d, LowRankLinear, truncate
from pinchpoint.compress.nuclear import NuclearNorm
from pinchpoint.compress.penalty import Penalty, Sum
from pinchpoint.compress.penalty_alignment import AlignmentPenalty
from pinchpoint.compress.penalty_groups import GroupLasso
from pinchpoint.compress.penalty_sparse import L1, Hoyer
from pinchpoint.compress.penalty_spread import SpreadControl
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
