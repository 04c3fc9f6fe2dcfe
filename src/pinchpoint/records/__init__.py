"""What is written down about a model: plain typed records, no torch, no computing.

Every number here was computed elsewhere, once. Records turn into JSON and into rows of a data frame; the report reads
nothing else. A value that could not be computed is ``None`` and its reason stands in ``warnings``.
"""

from pinchpoint.records.attacked import Access, Attacked, AttackSheet, CurvePoint, Robustness, TransferMatrix
from pinchpoint.records.audited import Audit, LayerMechanism, Mechanism
from pinchpoint.records.base import SCHEMA_VERSION, Norm, Record, ThreatNorm
from pinchpoint.records.bounded import (
    Bounds,
    BoundSheet,
    LayerBound,
    LayerBounds,
    NetworkBounds,
    OperatorBounds,
    PairBounds,
    UpperBound,
)
from pinchpoint.records.made import Compressed, EpochRecord, PrunedLayer, Pruning, Trained, Training
from pinchpoint.records.measured import LayerProfile, Profile, Skipped, View, ViewName
from pinchpoint.records.study import Correlation, Family, Level, Member, Peak, Run, Summary

__all__ = [
    "SCHEMA_VERSION",
    "Access",
    "AttackSheet",
    "Attacked",
    "Audit",
    "BoundSheet",
    "Bounds",
    "Compressed",
    "Correlation",
    "CurvePoint",
    "EpochRecord",
    "Family",
    "LayerBound",
    "LayerBounds",
    "LayerMechanism",
    "LayerProfile",
    "Level",
    "Mechanism",
    "Member",
    "NetworkBounds",
    "Norm",
    "OperatorBounds",
    "PairBounds",
    "Peak",
    "Profile",
    "PrunedLayer",
    "Pruning",
    "Record",
    "Robustness",
    "Run",
    "Skipped",
    "Summary",
    "ThreatNorm",
    "Trained",
    "Training",
    "TransferMatrix",
    "UpperBound",
    "View",
    "ViewName",
]
