"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pinchpoint.recipes.recipe import read_recipe
from pinchpoint.study import parse, plan

README = Path(__file__).parent.parent / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_examples_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    lines = []
    for block in _blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
        lines.append(len(capsys.readouterr().out.splitlines()))
    assert lines == [6, 2, 6]


def test_the_study_example_is_a_valid_study():
    _, study = _blocks("yaml")
    assert len(plan(parse(study)).tasks) == 4 * 3


@pytest.mark.parametrize("page", ["README.md", "docs/compress.md"])
def test_recipes_are_valid(page, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (README.parent / page).read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(blocks[0])
    assert read_recipe(tmp_path / "recipe.yaml").adversarial is not None


def test_the_files_it_links_to_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (Path(__file__).parent.parent / link).exists()]
    assert missing == []
