"""How long what is left of a study will take: from what like stages took, and from a timed probe where there are none.

Stages are alike where kind, norm, network and data are the same, and what else decides the work: penalties and adversary of
a training, for one. Epochs, steps and samples may differ; the seconds are scaled by them.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from pinchpoint.errors import PinchpointError
from pinchpoint.recipes.recipe import Recipe
from pinchpoint.records.estimate import Estimate
from pinchpoint.records.stages import MODEL_STAGES, STAGE_KINDS
from pinchpoint.study.graph.plan import Plan
from pinchpoint.study.graph.stages import KINDS, Key, Stage
from pinchpoint.study.store.store import Store

PROBE_SECONDS = 60.0
"""No further probe is begun after this."""

_MOST = 2000
"""Records of each kind that are looked at."""

Probe = Callable[[Stage], float | None]


def estimate(planned: Plan, store: Store, *, workers: int = 1, probe: Probe | None = None) -> Estimate:
    """Add up the seconds of all stages that are not finished.

    Args:
        planned: the study.
        store: where its stages, and perhaps like ones, are.
        workers: processes that will share the work, though no more than there are runs.
        probe: says what a stage will take (``probe.seconds``); without it, stages like none in the store are unknown.
    """
    finished = store.finished() | store.failures()
    known, asked = _recorded(store), _Asked(probe)
    seconds: dict[str, float] = {}
    recorded = probed = unknown = 0
    for stages in _groups(planned, finished):
        kind = stages[0].kind
        like, work = _like(kind, stages[0].norm, _made(stages[0]), stages[0].config())
        each = known.get(like)
        if each is not None:
            recorded += len(stages)
        elif (each := asked(like, work, stages[0])) is not None:
            probed += len(stages)
        else:
            unknown += len(stages)
            continue
        seconds[kind] = seconds.get(kind, 0.0) + each * work * len(stages)
    shared = max(1, min(workers, len(planned.waiting(finished))))
    in_order: dict[str, float] = {kind: seconds[kind] for kind in KINDS if kind in seconds}
    return Estimate(in_order, recorded, probed, unknown, shared, asked.reason)


class _Asked:
    """A probe that is asked once for stages that are alike. Once its time is up, the mean of what it said of a kind has to
    do for the rest of that kind."""

    def __init__(self, probe: Probe | None) -> None:
        self.probe, self.reason = probe, None if probe else "no probe was made"
        self._found: dict[str, float | None] = {}
        self._of_kind: dict[tuple[str, str | None], list[float]] = {}
        self._begun = time.monotonic()

    def __call__(self, like: str, work: float, stage: Stage) -> float | None:
        """Seconds per unit of work."""
        said = self._of_kind.setdefault((stage.kind, stage.norm), [])
        if like not in self._found and self.probe is not None:
            if said and time.monotonic() - self._begun > PROBE_SECONDS:
                return statistics.fmean(said)
            try:
                took = self.probe(stage)
            except PinchpointError as error:
                took, self.reason = None, self.reason or str(error)
            self._found[like] = None if took is None else took / work
            said += [] if took is None else [took / work]
        return self._found.get(like)


def _groups(planned: Plan, finished: Set[Key]) -> Iterable[list[Stage]]:
    """Stages that are not finished, those together that depend on the same configuration."""
    groups: dict[tuple[object, ...], list[Stage]] = {}
    for key, stage in planned.stages.items():
        if key not in finished:
            cell = stage.cell  # cells that have a section alike share it as one object
            how: tuple[object, ...] = (cell.audit,)
            if stage.kind in MODEL_STAGES:
                how = (cell.penalty, cell.adversarial, cell.train)
            sections = (cell.model, cell.data, cell.transfer, cell.compress, *how)
            group = (stage.kind, stage.norm, cell.device, cell.threads, *map(id, sections))
            groups.setdefault(group, []).append(stage)
    return groups.values()


# --- what makes stages alike ----------------------------------------------------------------------------------------

_LITTLE = {
    "data": {"limit_test", "workers", "memory_gb"},
    "train": {
        "epochs",
        "learning_rate",
        "weight_decay",
        "patience",
        "milestones",
        "gamma",
        "warmup_epochs",
        "clip_norm",
    },
    "adversarial": {"eps", "step_size"},
    **{name: set(kind.scaled_by) for name, kind in STAGE_KINDS.items() if kind.scaled_by},
}
"""What makes little difference for the seconds, or only scales them."""


def _like(kind: str, norm: str | None, made: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, float]:
    """A name that like stages share, and how much of such work this one is.

    Args:
        kind, norm: the stage's.
        made: how its model was made, by section.
        own: its configuration.
    """
    same: dict[str, object] = {key: made[key] for key in ("model", "device", "threads")}
    same["data"] = _without("data", made["data"])
    if kind == "train":
        same["train"] = _without("train", made["train"])
        same["adversarial"] = _without("adversarial", made["adversarial"] or {})
        same["penalties"] = sorted(name for name, strength in made["penalty"].items() if strength)
        work = float(made["train"]["epochs"])
    else:
        same |= {"transfer": made.get("transfer"), "compress": made.get("compress")}
        same["own"] = {key: value for key, value in _without(kind, own).items() if key not in ("threat", "samples")}
        work = _work(kind, own)
    text = json.dumps([kind, norm, same], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), work


def _work(kind: str, own: Mapping[str, Any]) -> float:
    """Gradients or answers, on average over curves from nearly all to nearly none; 1 for what takes the same always."""
    if not STAGE_KINDS[kind].scaled_by:
        return 1.0
    if kind == "attack":
        times = 2 * own["steps"] + (len(own["threat"]["curve"]) - 1) * own["curve_steps"]
    else:
        times = math.prod(own[field] for field in STAGE_KINDS[kind].scaled_by)
    return float(times * (own["samples"] or 1))


def _without(section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _LITTLE.get(section, ())}


def _made(stage: Stage) -> dict[str, Any]:
    """How a stage's model is made: the recipe, and what of transfer and compress comes before it or is it."""
    sections = set(Recipe.model_fields)
    for kind in MODEL_STAGES[1:]:
        if stage.kind not in MODEL_STAGES or MODEL_STAGES.index(kind) <= MODEL_STAGES.index(stage.kind):
            sections.add(kind)
    return stage.cell.model_dump(mode="json", include=sections)


def _recorded(store: Store) -> dict[str, float]:
    """Seconds per unit of work of each kind of like stages that a store has."""
    made: dict[Key, dict[str, Any]] = {}
    found: dict[str, list[float]] = {}
    for kind in KINDS:  # models before what looks at them
        names = sorted(name for _, name in store.finished([kind]))[:_MOST]
        columns = ("id", "parents", "config", "seconds", "status")
        for name, parents, config, seconds, status in store.table(kind, set(names)).select(columns).iter_rows():
            own = json.loads(config)
            keys = [tuple(parent.split("/")) for parent in parents]
            models = [made[key] for key in keys if key in made]
            if kind in MODEL_STAGES:
                made[kind, name] = {**(models[0] if models else {}), **own}
            if status == "done" and (models or kind == "train"):
                norm = own["threat"]["norm"] if "threat" in own else None
                like, work = _like(kind, norm, made.get((kind, name)) or models[0], own)
                found.setdefault(like, []).append(seconds / work)
    return {like: statistics.fmean(each) for like, each in found.items()}
