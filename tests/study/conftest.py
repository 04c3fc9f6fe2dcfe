"""One tiny study, finished once, and the means to spoil it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pinchpoint.records import Run, StageRecord, Summary
from pinchpoint.study import Key, Plan, Store, StudyConfig, gather, parse, plan, run

_TINY = Path(__file__).with_name("tiny.yaml")

Edited = Callable[[Mapping[str, Any]], str]


@pytest.fixture(scope="session")
def edited() -> Edited:
    """The tiny study as YAML with some places changed; numbers in a path are places in lists, + a new one."""

    def edit(changes: Mapping[str, Any]) -> str:
        content = yaml.safe_load(_TINY.read_text())
        for path, value in changes.items():
            *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
            node = content
            for parent in parents:
                node = node[parent]
            if last == "+":
                node.append(value)
            else:
                node[last] = value
        return yaml.safe_dump(content, sort_keys=False)

    return edit


@pytest.fixture(scope="session")
def tiny() -> StudyConfig:
    return parse(_TINY.read_text(), "tiny.yaml")


@dataclass(frozen=True)
class Finished:
    """A store in which every run of the tiny study is finished. Not to be changed."""

    config: StudyConfig
    plan: Plan
    store: Store
    summary: Summary
    runs: dict[str, Run]
    records: dict[Key, StageRecord]


@pytest.fixture(scope="session")
def finished(tiny: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = Store(tmp_path_factory.mktemp("finished") / "tiny")
    assert run(tiny, store) == []
    summary, runs = gather(tiny, store)
    planned = plan(tiny)
    return Finished(tiny, planned, store, summary, {one.id: one for one in runs}, store.load(planned.stages))


@pytest.fixture(scope="session")
def numbers() -> Callable[[Any], Any]:
    """What a record holds, without what depends on the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip


@pytest.fixture
def record(finished) -> StageRecord:
    """One of the tiny study's records."""
    return next(iter(finished.records.values()))


@pytest.fixture
def key(finished) -> Key:
    """Its stage's."""
    return next(iter(finished.records))
