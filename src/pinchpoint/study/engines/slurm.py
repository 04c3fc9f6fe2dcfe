"""Stages as jobs of a SLURM cluster, through submitit. Each stage is a job of its own.

What SLURM wants to know beyond CPUs and GPUs it reads itself from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT,
SBATCH_TIMELIMIT and the like (man sbatch). What jobs say is kept in STORE/slurm until they have ended well.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pinchpoint.errors import ConfigError
from pinchpoint.study.engines.local import Job, Outcome, attempt, outcome_of
from pinchpoint.study.graph.stages import Key

if TYPE_CHECKING:
    import submitit

_SLOTS = 64
_MINUTES = 240
"""A job's limit, where SBATCH_TIMELIMIT gives no other."""
_POLL = 0.5


class Slurm:
    """Jobs of a cluster; ``workers`` of them wait or run at a time.

    Args:
        workers: 64 where None.
        cluster: ``local`` does jobs as processes of this machine, as submitit does without SLURM.
        grace: seconds to wait for what a job that has ended left behind, on a file system that takes its time.

    Raises:
        ConfigError: where submitit or SLURM is missing.
    """

    def __init__(
        self, workers: int | None = None, cluster: Literal["slurm", "local"] = "slurm", grace: float = 15.0
    ) -> None:
        try:
            import submitit
        except ImportError:
            remedy = "run pip install 'pinchpoint[slurm]'"
            raise ConfigError("the engine slurm needs the package submitit", "a Python without it", remedy) from None
        if cluster == "slurm" and shutil.which("sbatch") is None:
            remedy = "run it on a node that submits jobs, or with --engine local"
            raise ConfigError("the engine slurm needs SLURM", "a machine without sbatch", remedy)
        self.slots = _SLOTS if workers is None else workers
        self._submitit, self._cluster, self._grace = submitit, cluster, grace
        self._gpus: bool | None = None
        self._running: dict[Key, submitit.Job[object]] = {}
        self._ended: dict[Key, float] = {}

    def begin(self) -> None:
        """The cluster runs."""

    def submit(self, job: Job) -> None:
        """Queues it."""
        folder = (job.home or Path.cwd()) / "slurm"
        executor = self._submitit.AutoExecutor(folder, cluster=self._cluster)
        asked: dict[str, Any] = {"cpus_per_task": job.cpus, "timeout_min": _MINUTES, "name": "-".join(job.key)}
        if job.gpus and self._has_gpus():
            asked["gpus_per_node"] = job.gpus
        executor.update_parameters(**asked)
        self._running[job.key] = executor.submit(attempt, Job(job.key, outcome_of, (job,)))

    def wait(self, seconds: float) -> Sequence[Outcome]:
        """Jobs that have left a result, or have ended without one."""
        end = time.monotonic() + seconds
        while True:
            found = [one for key in list(self._running) if (one := self._outcome(key)) is not None]
            left = end - time.monotonic()
            if found or left <= 0 or not self._running:
                return found
            time.sleep(min(_POLL, left))

    def close(self) -> None:
        """Cancels what waits or runs."""
        running, self._running = self._running, {}
        for job in running.values():
            job.cancel(check=False)

    def _outcome(self, key: Key) -> Outcome | None:
        job = self._running[key]
        if not job.done():
            return None
        if not job.paths.result_pickle.exists():
            if time.monotonic() - self._ended.setdefault(key, time.monotonic()) < self._grace:
                return None
            outcome = Outcome(key, lost=f"its job {job.job_id} ended without a result ({job.state.lower()})")
        else:
            outcome = self._result(key, job)
        del self._running[key]
        self._ended.pop(key, None)
        return outcome

    def _result(self, key: Key, job: submitit.Job[Any]) -> Outcome:
        try:
            outcome: Outcome = job.result()
        except self._submitit.core.utils.FailedJobError as error:
            return Outcome(key, lost=f"its job {job.job_id} failed ({_last(str(error))})")
        for path in job.paths.folder.glob(f"{job.job_id}_*"):
            with suppress(OSError):
                path.unlink()
        return outcome

    def _has_gpus(self) -> bool:
        """Whether some node has any; asked for where there are none, a job would wait for ever."""
        if self._gpus is None:
            command = ["sinfo", "--noheader", "--format=%G"]
            found = subprocess.run(command, capture_output=True, text=True) if shutil.which("sinfo") else None
            self._gpus = found is not None and "gpu" in found.stdout
        return self._gpus


def _last(trace: str) -> str:
    """What a traceback in submitit's words says in the end."""
    lines = [line for line in trace.split("----------------------")[1].splitlines() if line.strip()]
    return lines[-1].strip()
