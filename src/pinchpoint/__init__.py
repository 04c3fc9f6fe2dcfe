"""Pinchpoint: compressibility and adversarial robustness of neural networks, measured, bounded, attacked and explained.

The most used names are here; they are loaded when first asked for, so ``import pinchpoint`` is quick.

>>> import pinchpoint
>>> pinchpoint.Threat("linf", 8 / 255)
Threat(norm='linf', eps=0.03137254901960784, box=(0.0, 1.0))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pinchpoint.version import __version__

if TYPE_CHECKING:
    from pinchpoint.attack import Threat, apgd, pgd, universal
    from pinchpoint.auditing.audit import audit
    from pinchpoint.bound import alignment, certified_radii, gap_bound, lipschitz, margins, structure_scale
    from pinchpoint.errors import PinchpointError, PinchpointWarning
    from pinchpoint.evaluate import robust_accuracy, robust_curve
    from pinchpoint.measure import OneAtATime, k_for_residual, layers, profile, residual, spread

_HOMES = {
    "attack": ("Threat", "apgd", "pgd", "universal"),
    "bound": ("alignment", "certified_radii", "gap_bound", "lipschitz", "margins", "structure_scale"),
    "errors": ("PinchpointError", "PinchpointWarning"),
    "evaluate": ("robust_accuracy", "robust_curve"),
    "auditing.audit": ("audit",),
    "measure": ("OneAtATime", "k_for_residual", "layers", "profile", "residual", "spread"),
}

__all__ = [
    "OneAtATime",
    "PinchpointError",
    "PinchpointWarning",
    "Threat",
    "__version__",
    "alignment",
    "apgd",
    "audit",
    "certified_radii",
    "gap_bound",
    "k_for_residual",
    "layers",
    "lipschitz",
    "margins",
    "pgd",
    "profile",
    "residual",
    "robust_accuracy",
    "robust_curve",
    "spread",
    "structure_scale",
    "universal",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return import_module(f"pinchpoint.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"pinchpoint.{home}"), name)
    raise AttributeError(f"module 'pinchpoint' has no attribute '{name}'")
