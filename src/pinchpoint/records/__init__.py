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
from pinchpoint.records.claims import Interval, Part, Ruling, Verdict
from pinchpoint.records.judged import Bounded, Carried, Fooled, Judged, Measured, Queried, Retrieved, RobustAt
from pinchpoint.records.made import (
    Compressed,
    EpochRecord,
    PrunedLayer,
    Pruning,
    Quantization,
    QuantizedLayer,
    Trained,
    Training,
)
from pinchpoint.records.measured import LayerProfile, Profile, Skipped, View, ViewName
from pinchpoint.records.pictures import DecisionPlane, Pictures, RepresentationPCA
from pinchpoint.records.stages import RESULTS, STORE_SCHEMA, StageRecord
from pinchpoint.records.study import Correlation, Family, Level, Member, Peak, Run, Summary

__all__ = [
    "RESULTS",
    "SCHEMA_VERSION",
    "STORE_SCHEMA",
    "Access",
    "AttackSheet",
    "Attacked",
    "Audit",
    "BoundSheet",
    "Bounded",
    "Bounds",
    "Carried",
    "Compressed",
    "Correlation",
    "CurvePoint",
    "DecisionPlane",
    "EpochRecord",
    "Family",
    "Fooled",
    "Interval",
    "Judged",
    "LayerBound",
    "LayerBounds",
    "LayerMechanism",
    "LayerProfile",
    "Level",
    "Measured",
    "Mechanism",
    "Member",
    "NetworkBounds",
    "Norm",
    "OperatorBounds",
    "PairBounds",
    "Part",
    "Peak",
    "Pictures",
    "Profile",
    "PrunedLayer",
    "Pruning",
    "Quantization",
    "QuantizedLayer",
    "Queried",
    "Record",
    "RepresentationPCA",
    "Retrieved",
    "RobustAt",
    "Robustness",
    "Ruling",
    "Run",
    "Skipped",
    "StageRecord",
    "Summary",
    "ThreatNorm",
    "Trained",
    "Training",
    "TransferMatrix",
    "UpperBound",
    "Verdict",
    "View",
    "ViewName",
]
