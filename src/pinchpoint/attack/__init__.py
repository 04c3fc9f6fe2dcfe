"""Attacks: torch only, any device, one signature. They propose; ``pinchpoint.evaluate`` decides."""

from pinchpoint.attack.apgd import apgd, apgd_to_the_end, targeted_apgd
from pinchpoint.attack.deepfool import deepfool
from pinchpoint.attack.differences import Differences, followable, pgd_by_differences
from pinchpoint.attack.ensemble import standard_ensemble
from pinchpoint.attack.fab import fab, nearest_misclassified
from pinchpoint.attack.fgsm import fgsm
from pinchpoint.attack.gradient_doubt import Doubt, gradient_doubt
from pinchpoint.attack.inner_pgd import inner_pgd
from pinchpoint.attack.minimum_norm import minimum_norm
from pinchpoint.attack.objectives import (
    Objective,
    TargetedObjective,
    cross_entropy,
    dlr,
    log_odds,
    logit_scale,
    margin,
    scaled_cross_entropy,
    scaled_log_odds,
    targeted_dlr,
    targeted_margin,
)
from pinchpoint.attack.pgd import pgd
from pinchpoint.attack.square import square
from pinchpoint.attack.threat import Threat
from pinchpoint.attack.universal import apply_universal, universal
from pinchpoint.attack.universal_deepfool import universal_deepfool

__all__ = [
    "Differences",
    "Doubt",
    "Objective",
    "TargetedObjective",
    "Threat",
    "apgd",
    "apgd_to_the_end",
    "apply_universal",
    "cross_entropy",
    "deepfool",
    "dlr",
    "fab",
    "fgsm",
    "followable",
    "gradient_doubt",
    "inner_pgd",
    "log_odds",
    "logit_scale",
    "margin",
    "minimum_norm",
    "nearest_misclassified",
    "pgd",
    "pgd_by_differences",
    "scaled_cross_entropy",
    "scaled_log_odds",
    "square",
    "standard_ensemble",
    "targeted_apgd",
    "targeted_dlr",
    "targeted_margin",
    "universal",
    "universal_deepfool",
]
