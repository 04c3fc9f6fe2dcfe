"""Drivers that start in a millisecond: a process that has imported everything forks one for each line it reads.

A line is ROOT WORKERS; the answer is the new process's number. When a driver ends by itself it leaves ROOT.PID with the
runs that failed. It leads a session of its own, so that its workers can be found.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TESTS = Path(__file__).parent.parent
_TINY = _TESTS / "study" / "tiny.yaml"


class Driver:
    """One that was started."""

    def __init__(self, process: int, root: Path) -> None:
        self.process, self.root = process, root

    def kill(self) -> bool:
        """SIGKILL; False where it had ended by itself."""
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        self.wait()
        return self.ended is None

    @property
    def ended(self) -> list[str] | None:
        """Why runs failed, where it ended by itself."""
        path = self.root.with_name(f"{self.root.name}.{self.process}")
        return json.loads(path.read_text()) if path.exists() else None

    def wait(self) -> None:
        """Until it is gone, with all its workers."""
        end = time.monotonic() + 60
        while Path(f"/proc/{self.process}").exists() or alive(self.process):  # the first before it leads a session
            assert time.monotonic() < end, "a driver or its workers do not end"
            time.sleep(0.002)

    def workers(self) -> list[int]:
        """Its worker processes."""
        return [process for process in alive(self.process) if process != self.process]


def alive(session: int) -> list[int]:
    """Processes of a session, without those that only wait to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
            if int(of) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


class Nursery:
    """Starts drivers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def driver(self, root: Path, workers: int = 1) -> Driver:
        """A driver of the pretended tiny study on the store ``root``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{workers} {root}\n")
        self._process.stdin.flush()
        return Driver(int(self._process.stdout.readline()), root)


@contextmanager
def nursery(errors: Path) -> Iterator[Nursery]:
    """The process that forks drivers; what they say on stderr is kept in a file."""
    environment = os.environ | {"PYTHONPATH": str(_TESTS), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "oracles.nursery"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment
        )
        try:
            yield Nursery(process)
        finally:
            process.communicate()


def _fork_drivers() -> None:
    import pinchpoint.study.analysis.summary  # noqa: F401
    from oracles import pretend  # noqa: F401
    from pinchpoint.study import parse

    config = parse(_TINY.read_text())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who is killed is gone at once
    for line in sys.stdin:
        workers, _, root = line.rstrip("\n").partition(" ")
        process = os.fork()
        if process == 0:
            try:
                _drive(config, Path(root), int(workers))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        print(process, flush=True)


def _drive(config: object, root: Path, workers: int) -> None:
    import multiprocessing

    from oracles import pretend
    from pinchpoint.study import Store, run
    from pinchpoint.study.engines import local
    from pinchpoint.study.stages import run as perform

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    fork = multiprocessing.get_context("fork")
    local.multiprocessing.get_context = lambda name: fork  # what was imported need not be again
    if workers > 1:  # real workers are spawned; forked ones hang where polars has begun to read in their driver
        Store.check = lambda self, keys: None
    perform.perform, perform.check = pretend.perform, lambda cells: None
    failed = run(config, Store(root), workers=workers)
    ended = root.with_name(f"{root.name}.{os.getpid()}")
    new = ended.with_name(f"{ended.name}.new")
    new.write_text(json.dumps([failure.reason for failure in failed]))
    new.rename(ended)
    os._exit(0)


if __name__ == "__main__":
    _fork_drivers()
