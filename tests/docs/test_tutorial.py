"""The tutorial runs from top to bottom and says what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oracles.console import pinch

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


def _words(text: str) -> str:
    return _NUMBER.sub("#", text)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    said, kinds = "", []
    for kind, block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "python":
            assert said == "", f"the page does not show {said}"
            exec(compile(block, PAGE.name, "exec"), names)
            said = capsys.readouterr().out
        elif kind == "text":
            assert _words(said) == _words(block)
            assert _numbers(said) == pytest.approx(_numbers(block), rel=0.02, abs=0.02)
            said = ""
        else:
            for line in block.splitlines():
                ended = pinch(*line.removeprefix("$ pinchpoint ").split())
                assert ended.status == 0, ended.err
    assert said == ""
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"python": 10, "text": 10, "console": 1}
    assert (tmp_path / "runs" / "side-by-side.html").stat().st_size > 10_000
