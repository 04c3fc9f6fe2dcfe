"""Interactive figures of an audit, each a ``Panel``."""

from pinchpoint.report.audit.figures.common import named
from pinchpoint.report.audit.figures.curve import curve
from pinchpoint.report.audit.figures.layers import alignment, amplification
from pinchpoint.report.audit.figures.ranking import gains, shares

__all__ = ["alignment", "amplification", "curve", "gains", "named", "shares"]
