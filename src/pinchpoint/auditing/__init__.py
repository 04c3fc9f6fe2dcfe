"""One model looked at: measured, bounded, attacked, explained, and what to do about it.

``audit`` does everything for one model; a study does the ``steps`` one by one and keeps each. The folder is not called
``audit``, since the package's function of that name would hide it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pinchpoint.auditing.config import AuditConfig, CaptionsConfig, ThreatConfig

__all__ = ["AuditConfig", "CaptionsConfig", "ThreatConfig"]


def __getattr__(name: str) -> object:
    """Names are loaded when first asked for: conditions and times are read before torch is there."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pinchpoint.auditing.config"), name)
