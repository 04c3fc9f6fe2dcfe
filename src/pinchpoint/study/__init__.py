"""Experiments as files: validated whole, run once, kept under the hash of their configuration."""

from pinchpoint.study.config import Cell, StudyConfig, Task, parse, read
from pinchpoint.study.engine import Failure, default_workers
from pinchpoint.study.store import Store
from pinchpoint.study.study import Status, catalogue, gather, run, status

__all__ = [
    "Cell",
    "Failure",
    "Status",
    "Store",
    "StudyConfig",
    "Task",
    "catalogue",
    "default_workers",
    "gather",
    "parse",
    "read",
    "run",
    "status",
]
