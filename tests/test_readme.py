"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

from pinchpoint.study import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_python_example_runs(capsys):
    exec(compile(_block("python"), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_study_example_is_a_valid_study():
    assert len(parse(_block("yaml")).plan()) == 4 * 3


def test_the_files_it_links_to_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (Path(__file__).parent.parent / link).exists()]
    assert missing == []
