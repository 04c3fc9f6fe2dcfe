"""Attacks: torch only, any device, one signature. They propose; ``pinchpoint.evaluate`` decides."""

from pinchpoint.attack.apgd import apgd
from pinchpoint.attack.objectives import Objective, cross_entropy, dlr, logit_scale, margin, scaled_cross_entropy
from pinchpoint.attack.pgd import pgd
from pinchpoint.attack.threat import Threat
from pinchpoint.attack.universal import apply_universal, universal

__all__ = [
    "Objective",
    "Threat",
    "apgd",
    "apply_universal",
    "cross_entropy",
    "dlr",
    "logit_scale",
    "margin",
    "pgd",
    "scaled_cross_entropy",
    "universal",
]
