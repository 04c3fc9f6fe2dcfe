"""Records as tables for the terminal. Numbers are shown, never computed."""

from pinchpoint.tables.attack import attack_parts
from pinchpoint.tables.bound import bound_parts
from pinchpoint.tables.compress import compressed_parts
from pinchpoint.tables.profile import profile_parts
from pinchpoint.tables.study import estimate_sentence, garbage_table, legend, plan_tables, summary_tables
from pinchpoint.tables.text import down, up

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
