"""Stages on a Ray cluster: one that is there, or one started on this machine for as long as the study takes.

Ray's own retries are off: the driver hands out again what was lost, and sees it in the store where it was not lost after
all. Every node must have this version of pinchpoint, and see the store.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.study.engines.local import Job, Outcome, default_workers, outcome_of, warm
from pinchpoint.study.graph.stages import Key
from pinchpoint.study.store.store import mark

if TYPE_CHECKING:
    from ray import ObjectRef

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a default that will change
}
_ANSWER, _PARTING = 5.0, 10.0
"""Seconds that a cluster has to answer, and that stages have to leave."""


class Ray:
    """Tasks on a Ray cluster.

    Args:
        address: ``auto`` or HOST:PORT of a cluster to join. None starts one on this machine, and ends it on ``close``.
        workers: stages at a time, at most: on this machine one a core, where None; on a cluster all it has room for.

    Raises:
        ConfigError: where Ray is not installed.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError:
            remedy = "run pip install 'pinchpoint[ray]'"
            raise ConfigError("the engine ray needs the package ray", "a Python without it", remedy) from None
        self._ray: ModuleType = ray
        self._address, self._workers = address, workers
        self._task = ray.remote(max_retries=0)(_attempt)
        self._ours = self._joined = False
        self._running: dict[ObjectRef[Outcome], Key] = {}
        self._asked = (1, 0)
        self._signs: dict[Path, tempfile.TemporaryDirectory[str]] = {}

    @property
    def slots(self) -> int:
        """What the nodes that are there now have room for; one where there are none yet, which then waits."""
        self._join()
        cpus, gpus = self._asked
        room = 0
        for node in self._nodes():
            fit = node.get("CPU", 0) // cpus
            room += int(min(fit, node.get("GPU", 0) // gpus) if gpus else fit)
        return max(1, room if self._workers is None else min(room, self._workers))

    def begin(self) -> None:
        """A cluster starts on this machine; its workers import what stages need while the driver goes on."""
        if self._address is None:
            self._join()
            warming = self._ray.remote(max_retries=0)(warm)
            for _ in range(self.slots):
                warming.remote()

    def submit(self, job: Job) -> None:
        """Queues it where the cluster has room."""
        self._join()
        self._asked = cpus, gpus = _request(job, self._nodes())
        there = _There(str(Path.cwd()), _ours(os.environ), job.home, self._sign(job.home))
        task = self._task.options(num_cpus=cpus, num_gpus=gpus)
        self._running[task.remote(there, job)] = job.key

    def wait(self, seconds: float) -> Sequence[Outcome]:
        """What nodes have given back, or will not.

        Raises:
            ConfigError: where a node cannot do stages at all.
        """
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), timeout=seconds)
        if ended:
            ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._outcome(one) for one in ended]

    def close(self) -> None:
        """Cancels what runs. Ends the cluster where it was started here."""
        running, self._running = list(self._running), {}
        if running and self._ray.is_initialized():
            for one in running:
                self._ray.cancel(one)
            _, left = self._ray.wait(running, num_returns=len(running), timeout=_PARTING)
            for one in left:
                self._ray.cancel(one, force=True)
        for sign in self._signs.values():
            sign.cleanup()
        self._signs = {}
        if self._ours:
            self._ray.shutdown()
        self._ours = self._joined = False

    def _outcome(self, reference: ObjectRef[Outcome]) -> Outcome:
        errors, key = self._ray.exceptions, self._running.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:
            seen = str(error.cause or error).strip().splitlines()[-1]
            rule = "every node must have this version of pinchpoint and what it needs"
            raise ConfigError(rule, seen, "install it there") from None
        except errors.RayError as error:
            return Outcome(key, lost=_LOST.get(type(error).__name__) or str(error).strip().splitlines()[0])
        return outcome

    def _nodes(self) -> list[dict[str, float]]:
        """What each node that lives has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _sign(self, home: Path | None) -> str | None:
        """An empty folder in ``home`` by which a node sees that it is the same."""
        if home is None:
            return None
        if home not in self._signs:
            try:
                self._signs[home] = tempfile.TemporaryDirectory(dir=home, prefix=mark(), ignore_cleanup_errors=True)
            except OSError as error:
                raise StoreError(
                    f"the store {home} must be writable", error.strerror, "choose another folder with --out"
                ) from None
        return self._signs[home].name

    def _join(self) -> None:
        """Connects to the cluster, once, or starts one. A program that is connected stays where it is."""
        if self._joined:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._ray.is_initialized():
            pass
        elif self._address is None:
            with _environment(_QUIET):
                self._ours = True
                workers = default_workers() if self._workers is None else self._workers
                self._ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            try:
                _check_answers(self._address)
                with _environment(_QUIET):
                    self._ray.init(self._address, **quiet)
            except (
                OSError,
                RuntimeError,
                ValueError,
                SystemExit,
            ) as error:  # its words for: nobody there, another version
                said = (str(error) or type(error).__name__).splitlines()[0]
                remedy = "start one with ray start --head, or leave --address out"
                raise ConfigError("a Ray cluster must answer", f"{self._address} ({said})", remedy) from None
            self._ours = True
        self._joined = True


_LOST = {
    "WorkerCrashedError": "its process was killed (out of memory?)",
    "OutOfMemoryError": "its node ran out of memory",
    "NodeDiedError": "its node died",
    "TaskCancelledError": "it was cancelled",
}


@dataclass(frozen=True)
class _There:
    """What a worker on another node takes over from the driver."""

    folder: str
    variables: Mapping[str, str]
    home: Path | None
    sign: str | None


def _attempt(there: _There, job: Job) -> Outcome:
    """On a node."""
    os.environ.update(there.variables)
    with suppress(OSError):  # paths in a configuration are relative to it; a node need not have it where there are none
        os.chdir(there.folder)
    if there.sign is not None and not Path(there.sign).is_dir():
        seen = f"a node ({platform.node()}) without {there.home}"
        remedy = "choose a folder that all nodes share with --out, or an address such as s3://... with --store"
        return Outcome(job.key, error=StoreError("every node must see the store", seen, remedy))
    return outcome_of(job)


def _request(job: Job, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs to ask for: what the job wants, but no more than some node has.

    >>> _request(Job(("train", "a"), print, (), cpus=8, gpus=1), [{"CPU": 4}, {"CPU": 2}])
    (4, 0)
    """
    able = [node for node in nodes if node.get("GPU", 0) >= 1] if job.gpus else []
    most = max((int(node.get("CPU", 0)) for node in able or nodes), default=0)
    return min(job.cpus, most or job.cpus), job.gpus if able else 0


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that pinchpoint reads."""
    return {name: value for name, value in environment.items() if name.startswith("PINCHPOINT_")}


def _check_answers(address: str) -> None:
    """Ray itself asks for minutes before it gives up.

    Raises:
        OSError: where nobody listens.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        with socket.create_connection((host, int(port)), timeout=_ANSWER):
            pass


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
