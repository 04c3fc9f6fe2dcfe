"""Records as tables for the terminal. Numbers are shown, never computed."""

from pinchpoint.report.terminal.attack import attack_parts
from pinchpoint.report.terminal.bound import bound_parts
from pinchpoint.report.terminal.compress import compressed_parts
from pinchpoint.report.terminal.profile import profile_parts
from pinchpoint.report.terminal.study import estimate_sentence, garbage_table, legend, plan_tables, summary_tables
from pinchpoint.report.terminal.text import down, up

__all__ = [
    "attack_parts",
    "bound_parts",
    "compressed_parts",
    "down",
    "estimate_sentence",
    "garbage_table",
    "legend",
    "plan_tables",
    "profile_parts",
    "summary_tables",
    "up",
]
