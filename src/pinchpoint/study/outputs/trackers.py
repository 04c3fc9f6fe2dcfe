"""Mirrors: finished runs shown in TensorBoard, MLflow or Weights & Biases as well. Off unless asked for.

The store stays the truth. A mirror gets the scalars of a run's flat row and its configuration, works in a thread of its own,
and where it fails it is given up with one warning; the study goes on. A run it has already is not mirrored twice.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.study.analysis.rows import read_rows
from pinchpoint.study.config.study import StudyConfig
from pinchpoint.study.engines.driver import Watcher
from pinchpoint.study.graph.plan import Plan, Task
from pinchpoint.study.graph.stages import Key, Stage
from pinchpoint.study.store.store import Store

Value = str | int | float | bool


@dataclass(frozen=True)
class Shown:
    """What a mirror is told of a run. ``config`` has dotted keys; what is no plain value there is JSON."""

    run: str
    study: str
    family: str
    label: str
    seed: int
    scalars: Mapping[str, float]
    config: Mapping[str, Value]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.family}: {self.label}, seed {self.seed}"


class Mirror(Protocol):
    """Shows runs somewhere else."""

    name: str

    def show(self, run: Shown) -> None:
        """Show a run, unless it is there."""


class TensorBoard:
    """One folder a run, with its scalars and hyperparameters: ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: str) -> None:
        self.name = f"tensorboard:{folder}"
        self.folder = Path(folder).expanduser()
        _package("tensorboard", "tensorboard")
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter

    def show(self, run: Shown) -> None:
        """Written aside and renamed, so a run is there whole or not at all."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{run.family}-{run.label}-{run.seed}")
        place = self.folder / run.study / f"{plain}-{run.run}"
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".writing-") as temporary:
            aside = Path(temporary) / place.name
            with self._writer(str(aside)) as writer:
                writer.add_hparams(dict(run.config), dict(run.scalars), run_name=".")
            with suppress(FileExistsError):
                aside.rename(place)


class MLflow:
    """One run a run, in the experiment named after the study; ``uri`` is where MLflow tracks."""

    def __init__(self, uri: str) -> None:
        self.name = f"mlflow:{uri}"
        self._mlflow = _package("mlflow", "mlflow-skinny")
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        except self._mlflow.exceptions.MlflowException as error:
            said = str(error).strip().splitlines()[0]
            raise ConfigError("MLflow must be able to track there", f"{uri} ({said})", "give another URI") from None

    def show(self, run: Shown) -> None:
        """Found again by its tag pinchpoint.run."""
        client, entities = self._client, self._mlflow.entities
        known = client.get_experiment_by_name(run.study)
        experiment = known.experiment_id if known is not None else client.create_experiment(run.study)
        if client.search_runs([experiment], filter_string=f"tags.`pinchpoint.run` = '{run.run}'", max_results=1):
            return
        tags = {"pinchpoint.run": run.run, "family": run.family, "label": run.label}
        made = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        parameters = [entities.Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        now = int(time.time() * 1000)
        metrics = [entities.Metric(key, value, now, 0) for key, value in run.scalars.items()]
        for first in range(0, len(parameters), _MOST):
            client.log_batch(made, params=parameters[first : first + _MOST])
        client.log_batch(made, metrics=metrics)
        client.set_terminated(made)


_MOST, _LONGEST = 100, 500  # what every MLflow server takes: parameters at a time, letters of one


class WandB:
    """One run a run, grouped by study and family; WANDB_MODE=offline keeps them on this machine."""

    def __init__(self, project: str) -> None:
        self.name = f"wandb:{project}"
        self.project = project
        self._wandb = _package("wandb", "wandb")
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online and not self._wandb.login(prompt=False, verify=False):
            remedy = "call wandb login, or set WANDB_MODE=offline"
            raise ConfigError("Weights & Biases must know who you are", "no key", remedy)

    def show(self, run: Shown) -> None:
        """Its id is ours, so a second one replaces the first."""
        shown = self._wandb.init(
            project=self.project,
            id=run.run,
            name=run.name,
            group=f"{run.study}/{run.family}",
            config=dict(run.config),
            resume="allow",
            settings=self._wandb.Settings(console="off", silent=True),
        )
        shown.summary.update(dict(run.scalars))
        shown.finish()


KINDS: dict[str, Callable[[str], Mirror]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def open_mirror(text: str) -> Mirror:
    """A mirror as it is named on a command line: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT.

    Raises:
        ConfigError: for another name, or where its package is missing.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS or not where:
        raise ConfigError("a mirror is tensorboard:FOLDER, mlflow:URI or wandb:PROJECT", text, "write one of these")
    return KINDS[kind](where)


def shown(study: str, task: Task, row: Mapping[str, Any]) -> Shown:
    """A run as mirrors see it, from its configuration and its flat row."""
    scalars = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key not in _WHERE}
    config = dict(_flat(task.cell.model_dump(mode="json")))
    return Shown(task.id, study, row["family"], row["label"], task.seed, scalars, config)


_WHERE = {"level", "seed"}


@contextmanager
def mirrored(
    watcher: Watcher,
    config: StudyConfig,
    planned: Plan,
    store: Store,
    mirrors: Sequence[Mirror],
    warn: Callable[[str], None],
) -> Iterator[Watcher]:
    """A watcher that also hands every run to the mirrors once it is finished; those finished before come first.

    Args:
        watcher: told what it was told before.
        config: the study.
        planned: its runs.
        store: where they are kept.
        mirrors: where they are shown. With none, this is the watcher itself.
        warn: told, once for each mirror, that one was given up.
    """
    if not mirrors:
        yield watcher
        return
    finished = store.finished()
    with ThreadPoolExecutor(1, "mirrors") as thread:
        watching = _Watcher(watcher, planned, finished, _Showing(config, store, planned, list(mirrors), warn), thread)
        try:
            yield watching
        except BaseException:
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        watching.rest(store.finished())


class _Watcher:
    """Notices when the last stage of a run ends."""

    def __init__(
        self, watcher: Watcher, planned: Plan, finished: set[Key], show: _Showing, thread: ThreadPoolExecutor
    ) -> None:
        self.watcher, self.show, self.thread = watcher, show, thread
        self.missing = {task.id: set(task.stages) - finished for task in planned.tasks}
        self.tasks = {task.id: task for task in planned.tasks}
        self.needing: dict[Key, list[str]] = {}
        for run, keys in self.missing.items():
            for key in keys:
                self.needing.setdefault(key, []).append(run)
        self.hand([run for run, keys in self.missing.items() if not keys])

    def started(self, stage: Stage) -> None:
        """Nothing of ours."""
        self.watcher.started(stage)

    def ended(self, stage: Stage, reason: str | None) -> None:
        """Runs that waited for this stage alone are finished."""
        self.watcher.ended(stage, reason)
        if reason is None:
            runs = self.needing.pop(stage.key, [])
            for run in runs:
                self.missing[run].discard(stage.key)
            self.hand([run for run in runs if not self.missing[run]])

    def rest(self, finished: set[Key]) -> None:
        """Runs that another driver has finished meanwhile."""
        left = [run for run, keys in self.missing.items() if keys and keys <= finished]
        self.hand(left)

    def hand(self, runs: Sequence[str]) -> None:
        """To the mirrors' thread."""
        if runs:
            self.thread.submit(self.show, [self.tasks[run] for run in runs])


class _Showing:
    """Puts runs together and shows them; in the mirrors' thread."""

    def __init__(
        self, config: StudyConfig, store: Store, planned: Plan, mirrors: list[Mirror], warn: Callable[[str], None]
    ) -> None:
        self.config, self.store, self.planned, self.mirrors, self.warn = config, store, planned, mirrors, warn

    def __call__(self, tasks: Sequence[Task]) -> None:
        for what in self._shown(tasks) if self.mirrors else ():
            for mirror in tuple(self.mirrors):
                try:
                    mirror.show(what)
                except Exception as error:  # whatever a foreign package may raise, the study goes on
                    self.mirrors.remove(mirror)
                    said = (str(error) or type(error).__name__).splitlines()[0]
                    self.warn(f"warning: the mirror {mirror.name} was given up: {said}")

    def _shown(self, tasks: Sequence[Task]) -> list[Shown]:
        """Each run once, in the first place it fills; records that cannot be read are told of by the study itself."""
        part = Plan(list(tasks), {key: self.planned.stages[key] for task in tasks for key in task.stages})
        try:
            rows = read_rows(self.config, part, self.store).rows
        except StoreError:
            return []
        first = {row["run"]: row for row in reversed(rows)}
        return [shown(self.config.study, task, first[task.id]) for task in tasks if task.id in first]


def _package(module: str, name: str) -> Any:
    """A package that only a mirror needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        rule = f"a mirror in {module} needs the package {name}"
        raise ConfigError(rule, str(error), f"pip install {name}") from None


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    """A configuration with dotted keys."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value if isinstance(value, Value) else json.dumps(value)
