"""The published JSON schemas: current, satisfied by every study file, and not by one with a slip of the pen."""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pinchpoint.study import names
from pinchpoint.study.outputs.schema import SCHEMAS, study_schema, summary_schema, text_of, write

_PUBLISHED = Path(__file__).parents[3] / "docs" / "schema"
_TINY = yaml.safe_load((Path(__file__).parents[1] / "tiny.yaml").read_text())


@pytest.fixture(scope="module")
def validator():
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_current(name):
    path = _PUBLISHED / f"{name}.json"
    made = text_of(SCHEMAS[name]())
    assert path.read_text(encoding="utf-8") == made, "run: pinchpoint study schema --out docs/schema"


@pytest.mark.parametrize("name", [*names(), "tiny"])
def test_every_study_file_satisfies_it(validator, name):
    text = (resources.files("pinchpoint.study") / "paper" / f"{name}.yaml").read_text() if name != "tiny" else None
    validator.validate(_TINY if text is None else yaml.safe_load(text))


def changed(path: str, value: Any) -> Any:
    """The tiny study with one place changed."""
    content = copy.deepcopy(_TINY)
    *parents, last = path.split("/")
    node = content
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node.setdefault(parent, {})
    node[int(last) if last.isdigit() else last] = value
    return content


WRONG = {
    "sedes": [0],
    "seeds": 3,
    "title": ["a"],
    "base/tran": {"epochs": 2},
    "base/train/epoch": 2,
    "base/train/epochs": 0,
    "base/train/optimizer": "adam",
    "base/model/name": "perceptron",
    "base/model/rnk": 2,
    "base/compress": {"kind": "prune", "ration": 0.5},
    "base/compress/kind": "shrink",
    "base/audit/stages": ["atack"],
    "base/audit/threats": [{"norm": "linf"}],
    "base/audit/threats/0/epss": 0.1,
    "base/adversarial": {"eps": "eight/255"},
    "base/audit/threats/0/curve": ["8/"],
    "base/surrogate": {"set": {"model.hiden": [8]}},
    "families/0/vew": "neuron",
    "families/0/view": "nuclear",
    "families/0/grid": {"penalty.grop_lasso": [0]},
    "families/0/fixed": {"train.epoch": 3},
    "families/1/grid/model.rank": 2,
    "families/1/zip": {"model.hidden": [8]},
    "families/1/list": [{"modl.rank": 2}],
    "families/0/labels": [[1], [2], [3]],
    "claims": [{"id": "a", "says": "b", "trend": {"metric": "robust_acuracy", "norm": "linf", "expected": "falls"}}],
    "scales": {"quick": {"base": {"train": {"epoch": 1}}}},
    "scales/quick/families": {"rank": {"gird": {}}},
    "scales/quick/claims": {"a": {"trend": {"metrics": "gap"}}},
    "scales/quick/scales": {},
}

RIGHT = {
    "base/model": {"name": "cifar_resnet", "depth": 20},
    "base/train/learning_rate": "3e-5",
    "base/adversarial": {"eps": "8/255"},
    "base/audit/threats": [{"norm": "linf", "eps": "8/255", "curve": ["2/255", 0.1]}],
    "base/compress": {"kind": "factorize", "rank": 2},
    "base/transfer": {"mode": "full"},
    "families/0/labels": ["none", 0.01, 1],
    "families/0/grid": {"compress": [None, {"kind": "quantize", "bits": 4}]},
    "families/1/zip": {"model.hidden": [[8]], "penalty.nuclear_norm": [0.1]},
    "claims": [
        {
            "id": "a",
            "says": "b",
            "contrast": {
                "metric": "clean_accuracy",
                "expected": "lower",
                "of": {"family": "lasso", "label": 0.1},
                "than": {"family": "rank", "label": 2},
            },
        }
    ],
    "scales": {"paper": {}, "quick": {"seeds": [0], "base": {"audit": {"samples": None}}, "families": {"rank": None}}},
    "scales/quick/families": {"rank": {"grid": {"model.rank": [1, 2]}}},
    "scales/quick/claims": {"a": {"trend": {"expected": "rises"}}, "b": None},
}


@pytest.mark.parametrize("path", WRONG)
def test_a_slip_of_the_pen_is_refused(validator, path):
    assert not validator.is_valid(changed(path, WRONG[path]))


@pytest.mark.parametrize("path", RIGHT)
def test_what_is_right_is_taken(validator, path):
    validator.validate(changed(path, RIGHT[path]))


def test_what_is_missing_is_refused(validator):
    for key in ("study", "seeds", "families"):
        assert not validator.is_valid({name: value for name, value in _TINY.items() if name != key})
    assert not validator.is_valid(changed("families/0", {"name": "a"}))


def test_a_summary_satisfies_its_schema(finished):
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads((finished.store.root / "summary.json").read_text())
    jsonschema.validate(content, schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid({**content, "headlin": ""})
    assert not jsonschema.Draft202012Validator(schema).is_valid({**content, "models": None})


def test_schemas_are_written_beside_each_other(tmp_path):
    assert [path.name for path in write(tmp_path / "new")] == ["study.json", "summary.json", "audit.json"]
    assert (tmp_path / "new" / "study.json").read_text(encoding="utf-8") == text_of(study_schema())
