"""Commands that pages show are commands that there are; conditions, recipes and studies are valid; completion completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pinchpoint.auditing import conditions
from pinchpoint.cli import app, checks
from pinchpoint.recipes.recipe import read_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"] if page.name != "results.md")


def shown(text: str) -> list[list[str]]:
    """The words of every ``$ pinchpoint`` line, without comments."""
    lines = re.findall(r"^\s*\$ (pinchpoint .*)$", text, re.MULTILINE)
    return [shlex.split(line.split("#")[0].split(" | ")[0])[1:] for line in lines]


@pytest.fixture(autouse=True)
def _all_files_are_there(monkeypatch):
    """Pages name files of the reader's."""
    monkeypatch.setattr(checks, "there", lambda path: True)
    monkeypatch.setattr(checks.config, "read_text", lambda path, what: "study: yours\n")


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters of the command they name, read as the command line reads them; nothing is run.

    Raises what typer raises for a command, option or value that there is not.
    """
    command: Any = typer.main.get_command(app)
    context, rest = None, words
    while True:
        context = command.make_context("pinchpoint", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return dict(context.params)
        rest = [*context._protected_args, *context.args]
        if not rest:  # options of pinchpoint itself, such as --version
            return dict(context.params)
        _, command, rest = command.resolve_command(context, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_pages_can_be_read(page):
    for words in shown(page.read_text(encoding="utf-8")):
        if not set(words) & {"--install-completion", "--show-completion"}:
            condition = parse(words).get("fail_if")
            if condition is not None:
                conditions.check(condition)


def test_a_command_that_is_not_there_is_found_out():
    for words in ("audti MODEL", "audit MODEL --data digits --samplse 10", "study walk my.yaml", "audit MODEL"):
        with pytest.raises(typer.BadParameter.__base__):
            parse(words.split())
    assert parse(["audit", "m", "--data", "digits", "--samples", "10"])["samples"] == 10


def test_pages_show_commands():
    assert sum(len(shown(page.read_text(encoding="utf-8"))) for page in PAGES) > 50


def test_names_of_conditions_are_those_that_are_explained():
    text = (ROOT / "docs" / "howto" / "gate-a-pull-request.md").read_text(encoding="utf-8")
    for name in (
        "clean_accuracy",
        "robust_accuracy",
        "universal_accuracy",
        "certified_accuracy",
        "neuron",
        "lipschitz_l2",
    ):
        assert f"`{name}`" in text


def test_the_workflow_is_valid_and_its_command_can_be_read():
    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "robustness.yml").read_text(encoding="utf-8"))
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    assert "pull_request" in workflow[True]
    (job,) = workflow["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if "pinchpoint audit" in step.get("run", "")]
    asked = parse(shlex.split(command)[1:])
    assert asked["against"] == "new/models/classifier"
    assert asked["model"] == "old/models/classifier"
    robust = "difference_robust_accuracy_linf"
    measured = {robust: -0.03, f"{robust}_high": -0.01, "difference_clean_accuracy": 0.0}
    assert conditions.holds(asked["fail_if"], measured)
    assert not conditions.holds(asked["fail_if"], {**measured, robust: -0.01})
    assert not conditions.holds(asked["fail_if"], {**measured, f"{robust}_high": 0.01})  # perhaps chance


def test_recipes_on_howto_pages_are_valid(tmp_path):
    text = (ROOT / "docs" / "howto" / "images-and-weights.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    assert read_recipe(tmp_path / "recipe.yaml").data.image_size == 224


@pytest.mark.long
@pytest.mark.parametrize(
    ("typed", "completed"), [("pinchpoint au", "audit"), ("pinchpoint audit runs --fai", "--fail-if")]
)
def test_the_shell_completes(typed, completed):
    words = typed.split()
    asked = {"_PINCHPOINT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    code = "from pinchpoint.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [completed]
    assert done.stderr == ""
