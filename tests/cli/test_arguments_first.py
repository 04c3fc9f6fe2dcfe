"""A wrong argument is refused before torch is imported: status 2, one sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pinchpoint.cli import checks
from pinchpoint.utils import model_names
from pinchpoint.utils.study_files import scaled_studies

WRONG = [
    "audit timm:x --data digits --threat linf:8",
    "audit timm:x --data digits --threat linf:1e999999999",
    "audit timm:x --data digits --threat l3:1",
    "audit timm:x --data nothing",
    "audit timm:x --data npz:nowhere.npz",
    "audit nowhere.pt --data digits",
    "audit timm:x --data digits --against nowhere.pt",
    "audit timm:x --data digits --budget 1e9999h",
    "audit timm:x --data digits --samples 0",
    "audit timm:x --data digits --device tpu",
    "audit timm:x --data digits --out /dev/null/x",
    "audit timm:x --data digits --fail-if " + "(" * 5000,
    "audit timm:x --data digits --normalize mean=nan,std=1",
    "attack timm:x --data digits --normalize mean=0,std=0",
    "prune timm:x --ratio 0.5 --normalize nothing",
    "attack timm:x --data digits --threat l2:-1",
    "attack timm:x --data digits --attack nothing",
    "bound nowhere.pt",
    "bound timm:x --input-size 0",
    "profile " + "x" * 5000 + ".pth",
    "prune timm:x --ratio 0.5 --threat linf:a",
    "prune timm:x --ratio 0.5 --data nothing",
    "factorize nowhere.pt",
    "train nowhere.yaml",
    "train {files}/unclosed.yaml",
    "train {files}/deep.yaml",
    "train {files}/recipe.yaml epochs",
    "train {files}/recipe.yaml train.epochs=[",
    "train {files}/recipe.yaml train.epochs=" + "[" * 100_000,
    "train {files}/recipe.yaml data.name=nothing",
    "train {files}/recipe.yaml data.name=npz:nowhere.npz",
    "train {files}/recipe.yaml --normalize mean=0,std=0",
    "train {files}/recipe.yaml --out /dev/null/x",
    "train {files}/recipe.yaml --devices 0",
    *(f"study {command} nowhere.yaml" for command in ("run", "plan", "status", "report")),
    "study run {files}/unclosed.yaml",
    "study plan {files}/deep.yaml",
    "study run {files}/recipe.yaml --engine nothing",
    "study run {files}/recipe.yaml --address auto",
    "study run {files}/recipe.yaml --out /dev/null/x",
    "study run {files}/recipe.yaml seeds",
    "study export nothing --out rows.csv",
    "study export demo --out rows.xlsx",
    "study gc nothing",
    "study schema nothing",
    "reproduce",
    "reproduce nothing",
    "reproduce all --engine nothing",
    "reproduce all --address auto",
    "reproduce all --page /nowhere/at/all.md",
    "reproduce all --out /dev/null/x",
    "compare nowhere",
    "compare {files}/deep {files}/deep",
]
RUN = """
import contextlib, io, json, sys
from pinchpoint import cli
said = []
for line in json.load(sys.stdin):
    sys.argv, text = ["pinchpoint", *line.split(" ")], io.StringIO()
    from pinchpoint.cli import options
    cli.err.file = text
    try:
        cli.main()
    except SystemExit as end:
        said.append([line[:60], end.code, "torch" in sys.modules, text.getvalue()])
print(json.dumps(said))
"""


@pytest.fixture
def files(tmp_path):
    """Files that are none of what they should be, and one that is."""
    (tmp_path / "recipe.yaml").write_text("data: {name: digits}\n")
    (tmp_path / "unclosed.yaml").write_text("data: [\n")
    (tmp_path / "deep.yaml").write_text("data: " + "[" * 100_000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "audit.json").write_text("[" * 100_000)
    return tmp_path


def test_wrong_arguments_are_refused_without_torch(files):
    lines = json.dumps([line.replace("{files}", str(files)) for line in WRONG])
    done = subprocess.run([sys.executable, "-c", RUN], input=lines, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(WRONG)
    for line, status, torch_there, text in answers:
        assert (status, torch_there, text.count("error:")) == (2, False, 1), (line, text)


def test_names_are_those_of_the_readers():
    from pinchpoint.data import config
    from pinchpoint.models import zoo
    from pinchpoint.study.config.catalogue import names, scales
    from pinchpoint.study.outputs import export, schema

    assert set(model_names.MODEL_PREFIXES) == {*zoo.LIBRARIES, "py"}
    assert set(checks.DATA_NAMES) == {"digits", *config.NPZ_NAMES}
    assert set(checks.DATA_KINDS) == {"npz", *config.FILE_KINDS, "torchvision"}
    assert set(checks.ROW_SUFFIXES) == set(export._WRITERS)
    assert set(checks.SCHEMAS) == set(schema.SCHEMAS)
    assert scaled_studies() == [name for name in names() if scales(name)]
