"""Experiments as files: validated whole, each stage done once, kept under the hash of what it depends on."""

from pinchpoint.study.api import Failure, Status, failures, finished_runs, gather, run, status
from pinchpoint.study.config.catalogue import catalogue, names, scales
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.config.study import StudyConfig, parse, read
from pinchpoint.study.engines.local import Engine, Here, Processes, default_workers
from pinchpoint.study.graph.plan import Plan, Task, plan
from pinchpoint.study.graph.stages import Key, Stage
from pinchpoint.study.store.remote import RemoteStore, open_store
from pinchpoint.study.store.store import Store

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
