"""All runs of a study, and all stages they need, each once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from pinchpoint.errors import ConfigError
from pinchpoint.records import Member
from pinchpoint.records.stages import MODEL_STAGES
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.config.study import StudyConfig, no_collecting
from pinchpoint.study.graph.stages import Hasher, Key, Stage, run_id


@dataclass(frozen=True, slots=True)
class Task:
    """One run: its id, configuration and seed, the stages it is put together from, and the places in the study it fills."""

    id: str
    cell: Cell
    seed: int
    stages: tuple[Key, ...]
    members: list[Member]

    @property
    def label(self) -> str:
        """Short name for people."""
        first = self.members[0]
        return f"{first.family}: {first.label}, seed {self.seed}"

    @property
    def model(self) -> Key:
        """The stage that leaves the model which is judged: the parent of every profile."""
        return next(key for key in reversed(self.own) if key[0] in MODEL_STAGES)

    @property
    def own(self) -> tuple[Key, ...]:
        """Its stages without those of a surrogate."""
        models = [number for number, key in enumerate(self.stages) if key[0] == "train"]
        if len(models) < 2:
            return self.stages
        profile = next(number for number, key in enumerate(self.stages) if key[0] == "profile")
        return (*self.stages[: models[1]], *self.stages[profile:])


@dataclass(frozen=True)
class Plan:
    """What a study comes to. ``stages`` has parents before children."""

    tasks: list[Task]
    stages: Mapping[Key, Stage]

    def waiting(self, finished: set[Key]) -> list[Task]:
        """Runs of which some stage is not finished."""
        return [task for task in self.tasks if not finished.issuperset(task.stages)]


def plan(config: StudyConfig) -> Plan:
    """Every run of the study, once, in the order of families, levels and seeds (seeds outermost).

    Raises:
        ConfigError: where two stages would be kept under one id.
    """
    with no_collecting():
        return _plan(config)


def _plan(config: StudyConfig) -> Plan:
    hasher, stages, tasks = Hasher(), dict[Key, Stage](), dict[str, Task]()
    surrogates: dict[int, tuple[Cell, Cell | None]] = {}
    for seed, family in itertools.product(config.seeds, config.families):
        for level, label, cell in config.levels(family):
            if id(cell) not in surrogates:
                surrogates[id(cell)] = cell, config.surrogate(cell)
            mine = hasher.stages(cell, seed, surrogates[id(cell)][1])
            run = run_id(mine)
            if run not in tasks:
                for stage in mine:
                    known = stages.setdefault(stage.key, stage)
                    if known.hashed != stage.hashed:
                        raise ConfigError(
                            "the id of a stage must belong to one configuration",
                            f"{stage.kind} {stage.id} for two",
                            "change any value of one of them, for example its seed",
                        )
                tasks[run] = Task(run, cell, seed, tuple(stage.key for stage in mine), [])
            tasks[run].members.append(Member(family=family.name, level=level, label=label, seed=seed, run=run))
    return Plan(list(tasks.values()), stages)
