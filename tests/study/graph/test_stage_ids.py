"""Ids of stages are names of stored results: moving or renaming code must not change them.

The file beside this was written by ``python tests/study/test_stage_ids.py``, which is run only where ids change on purpose
(then ``STAGE_SCHEMA`` goes up too, and the changelog says so).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pinchpoint.study import catalogue, names, plan, scales

PINNED = Path(__file__).with_name("stage_ids.json")


def identities(name: str, scale: str) -> dict[str, str]:
    """Of each kind of stage: how many there are, and one hash over all their ids, in order."""
    ids: dict[str, set[str]] = {}
    for kind, stage_id in plan(catalogue(name, scale)).stages:
        ids.setdefault(kind, set()).add(stage_id)
    return {
        kind: f"{len(stage_ids)} {hashlib.sha256(''.join(sorted(stage_ids)).encode()).hexdigest()[:16]}"
        for kind, stage_ids in sorted(ids.items())
    }


@pytest.mark.parametrize("name", names())
def test_ids_of_the_catalogue_are_those_of_the_stores_that_people_have(name):
    pinned = json.loads(PINNED.read_text())[name]
    assert {scale: identities(name, scale) for scale in scales(name)} == pinned


if __name__ == "__main__":
    everything = {name: {scale: identities(name, scale) for scale in scales(name)} for name in names()}
    PINNED.write_text(json.dumps(everything, indent=1) + "\n")
