"""Interactive figures of an audit, each a ``Panel``."""

from pinchpoint.report.audit.panels.common import named
from pinchpoint.report.audit.panels.curve import curve
from pinchpoint.report.audit.panels.layers import alignment, amplification
from pinchpoint.report.audit.panels.ranking import gains, shares

__all__ = ["alignment", "amplification", "curve", "gains", "named", "shares"]
