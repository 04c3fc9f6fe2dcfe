"""Ids of stages: equal where what a stage depends on is equal, and only there."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.records.stages import MODEL_STAGES
from pinchpoint.study import Cell
from pinchpoint.study.config.study import make_cell
from pinchpoint.study.graph.stages import KINDS, Hasher, Stage, run_id


def stages(cell: Cell, seed: int = 0, surrogate: Cell | None = None) -> dict[str, Stage]:
    """By name, without those of a surrogate's model."""
    return {stage.name: stage for stage in Hasher().stages(cell, seed, surrogate) if stage.cell is cell}


def digests(cell: Cell, seed: int = 0) -> dict[str, str]:
    return {name: stage.digest for name, stage in stages(cell, seed).items()}


THREATS = [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 0.5, "curve": [0.2]}]
AUDIT = {"threats": THREATS, "stages": ["bound", "attack", "universal", "mechanism", "query"]}
BASE = {"audit": AUDIT, "transfer": {"data": {"name": "digits"}}, "compress": {"kind": "quantize", "bits": 4}}
LOOKS = [f"{kind} {norm}" for norm in ("linf", "l2") for kind in AUDIT["stages"]]
ALL = ["train", "transfer", "compress", "profile", *LOOKS]


def under(*kinds: str) -> set[str]:
    return {name for name in ALL if name.split()[0] in kinds}


CHANGES = [
    ({}, set()),
    ({"train.epochs": 7}, set(ALL)),
    ({"model.hidden": [7]}, set(ALL)),
    ({"data.split_seed": 7}, set(ALL)),
    ({"penalty.l1": 7}, set(ALL)),
    ({"threads": 7}, set(ALL)),
    ({"device": "cpu"}, set(ALL)),
    ({"constant_frobenius": True}, set(ALL)),
    ({"adversarial": {"eps": 0.1}}, set(ALL)),
    ({"data.limit_test": 7}, set()),
    ({"data.workers": 7, "data.memory_gb": 7.0}, set()),
    ({"transfer.data.workers": 7}, set()),
    ({"transfer.data.limit_test": 7}, set(ALL) - {"train", "transfer", "compress"}),
    ({"transfer.mode": "full"}, set(ALL) - {"train"}),
    ({"transfer.train": {"epochs": 7}}, set(ALL) - {"train"}),
    ({"compress.bits": 7}, set(ALL) - {"train", "transfer"}),
    ({"audit.samples": 7}, set(LOOKS) - under("mechanism") | {"profile"} | under("mechanism")),
    ({"audit.steps": 7}, under("attack", "mechanism")),
    ({"audit.curve_steps": 7}, under("attack", "mechanism")),
    ({"audit.traced_samples": 7}, under("attack", "mechanism")),
    ({"audit.universal_steps": 7}, under("universal")),
    ({"audit.queries": 7}, under("query")),
    ({"audit.bound_seconds": 7}, under("bound")),
    ({"audit.bound_steps": 7}, under("bound")),
    ({"audit.jacobian_samples": 7}, under("bound")),
    ({"audit.k_share": 0.7}, under("profile", "mechanism")),
    ({"audit.target": 0.7}, under("profile")),
    ({"audit.captions": {"folder": "flickr30k"}}, set()),
    ({"audit.threats": [THREATS[0] | {"curve": [0.05]}, THREATS[1]]}, {"attack linf", "mechanism linf"}),
    ({"audit.threats": [THREATS[0] | {"curve": [0.1]}, THREATS[1]]}, set()),
    ({"audit.threats": [THREATS[0] | {"universal_eps": 0.2}, THREATS[1]]}, {"universal linf"}),
    ({"audit.threats": [THREATS[0] | {"universal_eps": 0.1}, THREATS[1]]}, set()),
    ({"audit.threats": [THREATS[0] | {"eps": 0.2}, THREATS[1]]}, {name for name in LOOKS if name.endswith("linf")}),
    ({"audit.threats": THREATS[::-1]}, set()),
    ({"audit.stages": AUDIT["stages"][::-1]}, set()),
]


@pytest.mark.parametrize(
    ("change", "expected"), CHANGES, ids=lambda value: str(value) if isinstance(value, dict) else len(value)
)
def test_a_changed_value_changes_the_stages_that_depend_on_it_and_no_other(change, expected):
    before, after = digests(make_cell(BASE, {})), digests(make_cell(BASE, change))
    assert sorted(before) == sorted(ALL)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == expected


def test_the_seed_is_part_of_all_that_is_drawn_and_through_the_model_of_all():
    before, after = digests(make_cell(BASE, {})), digests(make_cell(BASE, {}), 1)
    assert not set(before.values()) & set(after.values())


def test_stages_that_are_not_asked_for_leave_no_trace():
    cell = make_cell(BASE, {"audit.stages": ["attack"], "transfer": None, "compress": None})
    assert list(stages(cell)) == ["train", "profile", "attack linf", "attack l2"]
    fewer = make_cell(BASE, {"audit.stages": ["attack"]})
    assert digests(fewer).items() <= digests(make_cell(BASE, {})).items()


def test_parents_come_first_and_are_what_a_stage_looks_at():
    lent = {
        "surrogate": {"set": {"penalty.l1": 1}},
        "audit": {"threats": THREATS, "stages": ["attack", "mechanism", "transferred"]},
    }
    cell = make_cell(BASE | lent, {})
    surrogate = make_cell(BASE, {"penalty.l1": 1})
    made = list(Hasher().stages(cell, 3, surrogate))
    assert [stage.kind for stage in made[:6]] == ["train", "transfer", "compress"] * 2
    assert [stage.seed for stage in made[:6]] == [3] * 3 + [1003] * 3
    seen: set = set()
    for stage in made:
        assert set(stage.parents) <= seen
        seen.add(stage.key)
    judged, lender = made[2].key, made[5].key
    by_name = {stage.name: stage for stage in made[6:]}
    assert by_name["profile"].parents == by_name["attack l2"].parents == (judged,)
    assert by_name["mechanism l2"].parents == (judged, by_name["attack l2"].key)
    assert by_name["transferred l2"].parents == (judged, lender)
    assert made[1].parents == (made[0].key,)
    assert made[0].parents == ()


def test_a_surrogate_that_differs_makes_another_attack_and_no_other_model():
    lent = BASE | {"surrogate": {}, "audit": {"threats": THREATS[:1], "stages": ["attack", "transferred"]}}
    cell = make_cell(lent, {})
    one, other = (stages(cell, 0, make_cell(BASE, {"penalty.l1": value})) for value in (1, 2))
    assert {name for name in one if one[name].digest != other[name].digest} == {"transferred linf"}


def test_ids_are_the_beginning_of_their_digests_and_keys_are_places():
    for stage in Hasher().stages(make_cell(BASE, {}), 0):
        assert stage.digest.startswith(stage.id)
        assert (len(stage.digest), len(stage.id)) == (64, 16)
        assert stage.key == (stage.kind, stage.id)
        assert stage.kind in KINDS
        assert json.dumps(stage.config())
    assert set(MODEL_STAGES) < set(KINDS)


# --- equal configuration, equal id --------------------------------------------------------------------------------------

contents = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {"name": st.sampled_from(["digits", "mnist"])},
            optional={"limit_train": st.sampled_from([None, 100, 200]), "limit_test": st.sampled_from([None, 10])},
        ),
        "model": st.fixed_dictionaries(
            {}, optional={"hidden": st.sampled_from([[8], [8, 8], [88]]), "rank": st.sampled_from([None, 1, 2])}
        ),
        "penalty": st.fixed_dictionaries(
            {}, optional={name: st.sampled_from([0, 0.5, 1, 1.0]) for name in ("l1", "group_lasso", "nuclear_norm")}
        ),
        "train": st.fixed_dictionaries(
            {}, optional={"epochs": st.sampled_from([2, 3, 3.0, 40]), "learning_rate": st.sampled_from([1e-3, "1e-3", 0.1])}
        ),
        "compress": st.sampled_from([None, {"kind": "quantize", "bits": 4}, {"kind": "rescale", "factor": 2.0}]),
        "threads": st.sampled_from([1, 2]),
    },
)  # fmt: skip
RECIPE = set(Cell.model_fields) - {"transfer", "compress", "surrogate", "audit"}


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same mapping with its keys in another order."""
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    keys = list(value)
    chance.shuffle(keys)
    return {key: shuffled(value[key], chance) for key in keys}


@settings(max_examples=30)
@given(contents, st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_the_order_of_keys_is_of_no_consequence(content, chance, seed):
    one, other = make_cell(content, {}), make_cell(shuffled(content, chance), {})
    whole = json.loads(one.model_dump_json())
    written_out = make_cell(shuffled(whole, chance), {})
    assert digests(one, seed) == digests(other, seed) == digests(written_out, seed)


@settings(max_examples=50)
@given(contents, contents, st.integers(0, 1), st.integers(0, 1))
def test_ids_are_equal_where_configurations_are_and_only_there(first, second, seed, other_seed):
    cells = [make_cell(content, {}) for content in (first, second)]
    exclude = {"data": {"workers", "memory_gb", "limit_test"}}
    recipes = [cell.model_dump(mode="json", include=RECIPE, exclude=exclude) for cell in cells]
    limits = [cell.data.limit_test for cell in cells]
    same_model = recipes[0] == recipes[1] and seed == other_seed
    found = [stages(cell, number) for cell, number in zip(cells, (seed, other_seed), strict=True)]
    assert (found[0]["train"].digest == found[1]["train"].digest) == same_model
    same_judged = same_model and cells[0].compress == cells[1].compress
    for name in ("profile", "attack linf", "mechanism l2"):
        assert (found[0][name].digest == found[1][name].digest) == (same_judged and limits[0] == limits[1])
    assert (run_id(found[0].values()) == run_id(found[1].values())) == (same_judged and limits[0] == limits[1])


def test_one_hasher_for_many_cells_says_what_one_for_each_does():
    hasher, chance = Hasher(), random.Random(0)
    for _ in range(40):
        content = {"penalty": {"l1": chance.randrange(3)}, "threads": chance.randrange(1, 3), "model": {"hidden": [8]}}
        cell = make_cell(content, {})
        assert [stage.key for stage in hasher.stages(cell, 1)] == [stage.key for stage in Hasher().stages(cell, 1)]


@pytest.mark.long
def test_ids_are_the_same_in_another_process():
    content = "{'train': {'epochs': 3, 'patience': None}, 'model': {'hidden': [4, 5]}}"
    script = (
        "from pinchpoint.study import Cell; from pinchpoint.study.graph.stages import Hasher\n"
        f"print(*[stage.digest for stage in Hasher().stages(Cell.model_validate({content}), 7)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1234"}
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    here = Cell.model_validate({"model": {"hidden": (4, 5)}, "train": {"patience": None, "epochs": 3.0}})
    assert there.stdout.split() == [stage.digest for stage in Hasher().stages(here, 7)]


# --- every value counts -------------------------------------------------------------------------------------------------


def _leaves(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for key, value in content.items():
        here = f"{path}.{key}" if path else key
        found |= _leaves(value, here) if isinstance(value, dict) else {here: value}
    return found


_OTHERS = {
    "data.name": "mnist",
    "data.root": "elsewhere",
    "train.optimizer": "sgd",
    "model.mean": [0.5],
    "model.std": [0.5],
    "data.group_labels": [[0], [1]],
    "data.label_column": "elsewhere",
    "data.image_column": "elsewhere",
    "device": "cpu",
    "transfer": {"data": {"name": "digits"}},
    "compress": {"kind": "quantize", "bits": 4},
    "audit.threats": [{"norm": "linf", "eps": 0.1}],
    "audit.stages": ["attack"],
    "penalty.nuclear_mode": "exact",
    "penalty.layers": ["1"],
    "train.schedule": "cosine",
    "train.precision": "bfloat16",
    "train.ema": 0.9,
    "train.noise": {"scale": 0.1},
    "adversarial": {"eps": 0.1},
}
_TOGETHER = {
    "model.name": {"model": {"name": "cifar_resnet"}},
    "audit.captions": {
        "audit.stages": ["retrieval"],
        "audit.captions": {"folder": "x"},
        "model": {"name": "clip:ViT-B-32"},
    },
    "frobenius_scale": {"frobenius_scale": 0.5, "constant_frobenius": True},
    "train.milestones": {"train.milestones": [3], "train.schedule": "multistep"},
    "train.nesterov": {"train.nesterov": True, "train.optimizer": "sgd"},
    "train.trades_beta": {"train.trades_beta": 1.0, "adversarial": {}},
    "train.monitor": {"train.monitor": "attacked", "adversarial": {}},
    "audit.queries": {"audit.queries": 7, "audit.stages": ["query"]},
    "surrogate": {"surrogate": {}, "audit.stages": ["attack", "transferred"]},
}
"""Values that come only with others, or count only then."""


def test_the_id_of_a_run_changes_with_every_value_and_with_the_seed():
    plain = Cell()

    def id_of(cell: Cell, seed: int = 0) -> str:
        return run_id(Hasher().stages(cell, seed, plain if cell.surrogate else None))

    ids = {id_of(plain), id_of(plain, 1)}
    unseen = {"data": {"workers", "memory_gb"}}  # of no effect on a number
    leaves = _leaves(plain.model_dump(mode="json", exclude=unseen))
    for path, value in leaves.items():
        if path in _TOGETHER:
            ids.add(id_of(make_cell({}, _TOGETHER[path])))
            continue
        if path in _OTHERS:
            other = _OTHERS[path]
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, list):
            other = [*value, 7]
        elif isinstance(value, float):
            other = value / 2 if value else 0.25
        else:
            other = 7 if value is None else value + 1
        ids.add(id_of(make_cell({}, {path: other})))
    assert len(ids) == len(leaves) + 2


def test_how_image_files_are_decoded_does_not_make_another_run():
    plain = digests(make_cell({}, {}))
    assert digests(make_cell({}, {"data.workers": 7, "data.memory_gb": 1.0})) == plain
    assert not set(digests(make_cell({}, {"data.image_size": 7})).values()) & set(plain.values())
