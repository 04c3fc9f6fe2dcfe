"""Pruning: by filters, rows, heads, singular values or entries; spread uniformly, globally or by residual."""

from pinchpoint.compress.prune.allocate import Allocation, allocate
from pinchpoint.compress.prune.cost import flop_count, latencies, parameter_count
from pinchpoint.compress.prune.criteria import Criterion
from pinchpoint.compress.prune.masks import KeepPruned
from pinchpoint.compress.prune.prune import Count, FineTune, Pruned, prune
from pinchpoint.compress.prune.units import Unit

__all__ = [
    "Allocation",
    "Count",
    "Criterion",
    "FineTune",
    "KeepPruned",
    "Pruned",
    "Unit",
    "allocate",
    "flop_count",
    "latencies",
    "parameter_count",
    "prune",
]
