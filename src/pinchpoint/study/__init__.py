"""Experiments as files: validated whole, each stage done once, kept under the hash of what it depends on."""

from pinchpoint.study.catalogue import catalogue, names, scales
from pinchpoint.study.cell import Cell
from pinchpoint.study.config import StudyConfig, parse, read
from pinchpoint.study.engine import Engine, Here, Processes, default_workers
from pinchpoint.study.graph import Key, Stage
from pinchpoint.study.plan import Plan, Task, plan
from pinchpoint.study.remote import RemoteStore, open_store
from pinchpoint.study.store import Store
from pinchpoint.study.study import Failure, Status, failures, finished_runs, gather, run, status

__all__ = [
    "Cell",
    "Engine",
    "Failure",
    "Here",
    "Key",
    "Plan",
    "Processes",
    "RemoteStore",
    "Stage",
    "Status",
    "Store",
    "StudyConfig",
    "Task",
    "catalogue",
    "default_workers",
    "failures",
    "finished_runs",
    "gather",
    "names",
    "open_store",
    "parse",
    "plan",
    "read",
    "run",
    "scales",
    "status",
]
