"""How to repeat: what all runs share, where they differ, versions, machine, and what the runs warned of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pinchpoint.report.study.data import Material


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys and JSON values.

    >>> flat({"model": {"width": 64}, "eps": [0.1]})
    {'model.width': '64', 'eps': '[0.1]'}
    """
    table: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            table |= flat(value, f"{prefix}{key}.")
        else:
            table[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, default=str)
    return table


def _counted(lines: list[str]) -> list[tuple[str, int]]:
    """Each line once, with how often it occurs, in order of first appearance."""
    return [(line, lines.count(line)) for line in dict.fromkeys(lines)]


def repeat(material: Material) -> dict[str, Any]:
    """What the last section shows. Keys that are the same in all runs stand in ``shared``, the others in ``runs``."""
    configs = {run.id: flat(run.config) for run in material.runs}
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    same = [key for key in keys if len({config.get(key) for config in configs.values()}) == 1]
    varying = [key for key in keys if key not in same]
    places: dict[str, list[str]] = {}
    titles = {family.name: family.title for family in material.summary.families}
    for member in material.summary.members:
        places.setdefault(member.run, []).append(f"{titles.get(member.family, member.family)}: {member.label}")
    first = next(iter(configs.values()))
    machines = [run.machine for run in material.runs]
    versions = {
        name: ", ".join(dict.fromkeys(run.versions[name] for run in material.runs if name in run.versions))
        for name in dict.fromkeys(name for run in material.runs for name in run.versions)
    }
    skipped = [
        f"{item.name} ({item.kind}): {item.reason}" for run in material.runs for item in run.audit.profile.skipped
    ]
    return {
        "shared": {key: first[key] for key in same},
        "varying": varying,
        "runs": [
            {
                "id": run.id,
                "seed": run.seed,
                "places": places.get(run.id, []),
                "values": [configs[run.id].get(key, "–") for key in varying],
                "training": run.training,
                "samples": run.audit.samples,
            }
            for run in material.runs
        ],
        "seeds": material.seeds,
        "versions": {**material.summary.versions, **versions},
        "machines": list(dict.fromkeys([material.summary.machine, *machines])),
        "warnings": _counted([line for run in material.runs for line in run.audit.warnings]),
        "skipped": _counted(skipped),
        "assumptions": _counted(
            [line for run in material.runs for item in run.audit.bounds for line in item.assumptions]
        ),
    }
