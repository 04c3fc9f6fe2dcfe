"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

from pinchpoint.study import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    lines = []
    for block in _blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
        lines.append(len(capsys.readouterr().out.splitlines()))
    assert lines == [5, 2]


def test_the_study_example_is_a_valid_study():
    (study,) = _blocks("yaml")
    assert len(parse(study).plan()) == 4 * 3


def test_the_files_it_links_to_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (Path(__file__).parent.parent / link).exists()]
    assert missing == []
