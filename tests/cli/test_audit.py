"""``pinchpoint audit`` and ``compare`` as a user meets them: files, exit statuses, one sentence for a mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from oracles.console import Said, pinch
from pinchpoint.records import AuditReport
from pinchpoint.study.outputs.schema import audit_schema

SMALL = ("--data", "digits", "--threat", "linf:0.05", "--samples", 12, "--quick")
RECIPE = (
    "data: {name: digits}\nmodel: {hidden: [16, 16], rank: 2}\ntrain: {epochs: 2, learning_rate: 0.01}\ndevice: cpu\n"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two small networks, in a folder whose name has a space and is not ASCII."""
    folder = tmp_path_factory.mktemp("models") / "Ünser Ordner"
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    for seed in (0, 1):
        assert pinch("train", recipe, "--out", folder / str(seed), "--seed", seed).status == 0
    return {"first": folder / "0", "second": folder / "1"}


@pytest.fixture(scope="module")
def audited(models, tmp_path_factory) -> tuple[Said, Path]:
    out = tmp_path_factory.mktemp("audit") / "out"
    more = ("--against", models["second"], "--try", "--fail-if", "clean_accuracy < 0 or lipschitz_linf < 0")
    return pinch("audit", models["first"], *SMALL, *more, "--out", out), out


def test_everything_is_written(audited):
    result, out = audited
    assert result.status == 0, result.err
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", "audit.json", "figures"}
    report = AuditReport.model_validate_json((out / "audit.json").read_bytes())
    jsonschema.validate(json.loads((out / "audit.json").read_text()), audit_schema())
    assert len(report.verdict) == 3
    assert report.trial is not None
    assert report.comparison is not None
    assert report.other is not None
    for sentence in (*report.verdict, *report.comparison.said, report.trial.said):
        assert sentence in result.out
    page = (out / "report.html").read_text()
    assert len(page) < 6e6
    assert any(path.suffix == ".svg" for path in (out / "figures").iterdir())


def test_numbers_agree_with_each_other(audited):
    report = AuditReport.model_validate_json((audited[1] / "audit.json").read_bytes())
    (threat,) = report.threats
    assert threat.robust.of == len(threat.stage) == report.data.count == 12
    assert threat.robust.count == sum(name in ("survived", "certified") for name in threat.stage)
    assert sum(threat.settled.values()) == 12
    assert threat.certified is not None
    assert threat.certified.count <= threat.robust.count <= report.clean.count
    values = [point.robust.value for point in threat.curve]
    assert values == sorted(values, reverse=True)
    judged = next(point for point in threat.curve if point.eps == threat.eps)
    assert judged.robust == threat.robust
    assert sum(point.share for point in report.pinch_points) == pytest.approx(1.0)
    (clean, robust) = report.comparison.rows
    assert (clean.first, robust.first) == (report.clean, threat.robust)
    assert (clean.second, robust.second) == (report.other.clean, report.other.threats[0].robust)


def test_the_same_again_to_the_last_digit(models, audited, tmp_path):
    known = json.loads((audited[1] / "audit.json").read_text())
    more = ("--against", models["second"], "--try", "--fail-if", "robust_accuracy <= 1")
    again = pinch("audit", models["first"], *SMALL, *more, "--out", tmp_path, "--json")
    assert (again.status, again.err.splitlines()[-1]) == (1, "Failed: robust_accuracy <= 1")
    assert "Failed" not in audited[0].err
    found = json.loads(again.out)
    for record in (known, found):
        for part in (record, record["other"]):
            part.pop("timing")
            part.pop("command")
    assert found == known


def test_compare_puts_audits_side_by_side(audited, tmp_path):
    shutil.copytree(audited[1], tmp_path / "other")
    result = pinch("compare", audited[1], tmp_path / "other", "--out", tmp_path / "page.html")
    assert result.status == 0, result.err
    assert "<table" in (tmp_path / "page.html").read_text()


MISTAKES = {
    "no model": (["audit", "nothing", *SMALL], "where there is nothing"),
    "no data": (["audit", "MODEL", "--data", "nothing"], "nothing"),
    "no threat": (["audit", "MODEL", *SMALL, "--threat", "l3:1"], "l3"),
    "a norm twice": (["audit", "MODEL", *SMALL, "--threat", "linf:0.1"], "each norm once"),
    "no time": (["audit", "MODEL", *SMALL, "--budget", "soon"], "got soon"),
    "no condition": (["audit", "MODEL", *SMALL, "--fail-if", "neuron"], "got its end in 'neuron'"),
    "an unknown number": (["audit", "MODEL", *SMALL, "--fail-if", "robust_acuracy < 1"], "robust_accuracy is meant"),
    "an unknown rival": (["audit", "MODEL", *SMALL, "--against", "tim:resnet18"], "timm"),
    "code that makes no model": (["audit", "py:os:getcwd", *SMALL], "getcwd of os"),
    "out is a file": (["audit", "MODEL", *SMALL, "--out", "file"], "file"),
    "no audit": (["compare", "."], "audit.json"),
    "a broken audit": (["compare", "broken"], "must be an audit of schema"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_sentence(models, tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "audit.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    words, part = MISTAKES[name]
    result = pinch(*(models["first"] if word == "MODEL" else word for word in words))
    assert (result.status, result.out) == (2, ""), result.err
    (line,) = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert part in line
    assert not (tmp_path / "runs").exists()


def test_labels_of_other_classes_are_refused(models, tmp_path):
    x, y = np.zeros((240, 1, 8, 8), dtype=np.uint8), np.arange(240) % 12
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result = pinch("audit", models["first"], "--data", f"npz:{tmp_path / 'd.npz'}", "--out", tmp_path / "out")
    assert result.status == 2
    assert "a logit for each of the 12 classes" in result.err
    assert not (tmp_path / "out").exists()
