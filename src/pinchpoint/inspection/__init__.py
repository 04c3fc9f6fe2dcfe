"""One model looked at: measured, bounded, attacked, explained, and what to do about it.

``audit`` does everything for one model; a study does the ``steps`` one by one and keeps each.
"""

from pinchpoint.inspection.assemble import Found, assemble
from pinchpoint.inspection.config import AuditConfig, CaptionsConfig, ThreatConfig

__all__ = ["AuditConfig", "CaptionsConfig", "Found", "ThreatConfig", "assemble"]
