"""Mirrors show what the store holds, each run once, and never get into a study's way."""

from __future__ import annotations

import math
import shutil
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.study import Store
from pinchpoint.study.engines.driver import Silent
from pinchpoint.study.outputs.trackers import MLflow, Shown, WandB, mirrored, open_mirror

RUN = Shown(
    run="0123456789abcdef",
    study="tiny",
    family="rank",
    label="8 / 16",
    seed=3,
    scalars={"clean_accuracy": 0.875, "gap_linf": math.inf},
    config={"model.hidden": "[16]", "train.epochs": 2, "device": "cpu", "model.bias": False},
)


class Recorder:
    """A mirror that remembers; it may fail, and can be waited for."""

    name = "recorder"

    def __init__(self, fail_at: int | None = None) -> None:
        self.runs: list[Shown] = []
        self.threads: set[threading.Thread] = set()
        self.fail_at, self.shown = fail_at, threading.Event()

    def show(self, run: Shown) -> None:
        self.threads.add(threading.current_thread())
        if len(self.runs) == self.fail_at:
            raise RuntimeError("the server\nis gone")
        self.runs.append(run)
        self.shown.set()


@pytest.fixture
def watching(finished, tmp_path):
    """Mirrors of the tiny study in a new store, which a call fills with finished stages; and what is warned of."""

    def fill(keys):
        for key in keys:
            shutil.copytree(finished.store.folder(key), store.folder(key))

    @contextmanager
    def watch(*mirrors):
        with mirrored(Silent(), finished.config, finished.plan, store, mirrors, warned.append) as watcher:
            yield watcher

    store, warned = Store(tmp_path), list[str]()
    return SimpleNamespace(watch=watch, fill=fill, warned=warned)


def test_runs_that_are_there_already_are_shown_once_with_the_numbers_of_the_summary(finished, watching):
    mirror = Recorder()
    watching.fill(finished.plan.stages)
    with watching.watch(mirror):
        pass
    assert watching.warned == []
    assert [run.run for run in mirror.runs] == [task.id for task in finished.plan.tasks]
    rows = {row["run"]: row for row in reversed(finished.summary.models)}
    for run in mirror.runs:
        row = rows[run.run]
        assert (run.study, run.family, run.label, run.seed) == ("tiny", row["family"], row["label"], row["seed"])
        numbers = {name: value for name, value in row.items() if isinstance(value, float | int)}
        assert run.scalars == {name: value for name, value in numbers.items() if name not in ("seed", "level")}
        assert run.config["penalty.group_lasso"] == finished.runs[run.run].config["penalty"]["group_lasso"]
        assert (run.config["model.hidden"], run.config["compress"]) == ("[16]", "null")
    assert threading.current_thread() not in mirror.threads


def test_a_run_is_shown_when_its_last_stage_ends_and_not_again(finished, watching):
    mirror, (task, other, *_) = Recorder(), finished.plan.tasks
    with watching.watch(mirror) as watcher:
        for key in task.stages:
            assert not mirror.shown.is_set()
            watching.fill([key])
            watcher.started(finished.plan.stages[key])
            watcher.ended(finished.plan.stages[key], None)
        assert mirror.shown.wait(60)
        for key in other.stages[:-1]:
            watcher.ended(finished.plan.stages[key], None)
        watcher.ended(finished.plan.stages[other.stages[-1]], "it diverged")
    assert [run.run for run in mirror.runs] == [task.id]


def test_runs_that_another_driver_has_finished_are_shown_at_the_end(finished, watching):
    mirror = Recorder()
    with watching.watch(mirror):
        watching.fill(finished.plan.tasks[3].stages)
    assert [run.run for run in mirror.runs] == [finished.plan.tasks[3].id]


def test_a_mirror_that_fails_is_given_up_with_one_warning_and_the_others_go_on(finished, watching):
    bad, good = Recorder(fail_at=2), Recorder()
    watching.fill(finished.plan.stages)
    with watching.watch(bad, good):
        pass
    assert watching.warned == ["warning: the mirror recorder was given up: the server"]
    assert len(bad.runs) == 2
    assert len(good.runs) == len(finished.plan.tasks)


def test_an_interruption_waits_for_no_more_than_the_run_in_hand(finished, watching):
    mirror = Recorder()

    def interrupted():
        with watching.watch(mirror):
            watching.fill(finished.plan.stages)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert mirror.runs == []


def test_without_mirrors_the_watcher_is_the_one_that_was_given(finished):
    watcher = Silent()
    with mirrored(watcher, finished.config, finished.plan, finished.store, [], pytest.fail) as same:
        assert same is watcher


@pytest.mark.long
def test_tensorboard_reads_back_what_was_shown(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mirror = open_mirror(f"tensorboard:{tmp_path / 'runs'}")
    mirror.show(RUN)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert folder.name == "rank-8_16-3-0123456789abcdef"
    before = sorted(folder.iterdir())
    mirror.show(RUN)
    assert sorted(folder.iterdir()) == before
    found = EventAccumulator(str(folder)).Reload()
    assert {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]} == {
        "clean_accuracy": [0.875],
        "gap_linf": [math.inf],
    }
    started = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"model.hidden" in started
    assert b"[16]" in started


class Server:
    """What an MLflow client does, remembered."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.experiments, self.runs = tracking_uri, dict[str, str](), dict[str, dict]()

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = f"e{len(self.experiments)}"
        return self.experiments[name]

    def search_runs(self, experiments, filter_string, max_results):
        tags = [run["tags"]["pinchpoint.run"] for run in self.runs.values() if run["experiment"] in experiments]
        return [tag for tag in tags if filter_string == f"tags.`pinchpoint.run` = '{tag}'"]

    def create_run(self, experiment, run_name, tags):
        name = f"r{len(self.runs)}"
        self.runs[name] = {"experiment": experiment, "name": run_name, "tags": tags, "params": {}, "metrics": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_batch(self, run, params=(), metrics=()):
        assert len(params) <= 100
        self.runs[run]["params"] |= dict(params)
        self.runs[run]["metrics"] |= {name: value for name, value, _, _ in metrics}

    def set_terminated(self, run):
        self.runs[run]["over"] = True


def test_mlflow_is_told_everything_once(monkeypatch):
    entities = SimpleNamespace(Param=lambda *parts: parts, Metric=lambda *parts: parts)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Server, entities=entities))
    mirror = open_mirror("mlflow:http://somewhere:5000")
    assert isinstance(mirror, MLflow)
    many = {f"key.{number}": "x" * 1000 for number in range(250)}
    for run in (RUN, RUN, Shown(**{**vars(RUN), "run": "another", "config": many})):
        mirror.show(run)
    server = mirror._client
    assert server.uri == "http://somewhere:5000"
    assert server.experiments == {"tiny": "e0"}
    assert server.runs["r0"] == {
        "experiment": "e0",
        "name": "rank: 8 / 16, seed 3",
        "tags": {"pinchpoint.run": "0123456789abcdef", "family": "rank", "label": "8 / 16"},
        "params": {"model.hidden": "[16]", "train.epochs": "2", "device": "cpu", "model.bias": "False"},
        "metrics": RUN.scalars,
        "over": True,
    }
    assert server.runs["r1"]["params"] == dict.fromkeys(many, "x" * 500)
    assert len(server.runs) == 2


@pytest.mark.slow
def test_mlflow_itself_keeps_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    finite = Shown(**{**vars(RUN), "scalars": {"clean_accuracy": 0.875}})
    for _ in range(2):
        open_mirror(f"mlflow:file:{tmp_path}").show(finite)
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path}")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.data.metrics == {"clean_accuracy": 0.875}
    assert run.data.params["model.hidden"] == "[16]"
    assert run.info.status == "FINISHED"


@pytest.fixture
def wandb(monkeypatch):
    """A package that remembers its runs."""
    runs: dict[str, dict] = {}

    def init(**options):
        run = runs.setdefault(options["id"], {"summary": {}, "over": 0}) | {"options": options}
        runs[options["id"]] = run

        def finish():
            run["over"] += 1

        return SimpleNamespace(summary=run["summary"], finish=finish)

    made = SimpleNamespace(init=init, Settings=lambda **options: options, login=lambda **how: False, runs=runs)
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_wandb_is_told_everything_under_our_id(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror = open_mirror("wandb:robustness")
    assert isinstance(mirror, WandB)
    mirror.show(RUN)
    mirror.show(RUN)
    (run,) = wandb.runs.values()
    assert run["summary"] == RUN.scalars
    assert run["over"] == 2
    wanted = {"project": "robustness", "id": RUN.run, "group": "tiny/rank", "config": RUN.config, "resume": "allow"}
    assert {key: run["options"][key] for key in wanted} == wanted


def test_wandb_without_a_key_is_one_sentence_and_waits_for_no_answer(wandb, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    text = "Weights & Biases must know who you are, but got no key; call wandb login, or set WANDB_MODE=offline."
    with refused(ConfigError, text):
        open_mirror("wandb:robustness")
    wandb.login = lambda *, prompt, verify: not (prompt or verify)
    assert open_mirror("wandb:robustness").name == "wandb:robustness"


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "aim:here", ""])
def test_a_mirror_that_is_unknown_is_one_sentence(text):
    rule = "a mirror is tensorboard:FOLDER, mlflow:URI or wandb:PROJECT"
    with refused(ConfigError, f"{rule}, but got {text}; write one of these."):
        open_mirror(text)


@pytest.mark.parametrize(
    ("text", "module", "package"),
    [
        ("tensorboard:x", "tensorboard", "tensorboard"),
        ("mlflow:x", "mlflow", "mlflow-skinny"),
        ("wandb:x", "wandb", "wandb"),
    ],
)
def test_a_package_that_is_missing_is_one_sentence_with_the_command(monkeypatch, text, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        open_mirror(text)
    assert str(caught.value).startswith(f"a mirror in {module} needs the package {package}, but got ")
    assert str(caught.value).endswith(f"; pip install {package}.")
