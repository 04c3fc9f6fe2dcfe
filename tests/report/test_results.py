"""The page of results says what the records say."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from pinchpoint.records import Interval, Run, Summary, Verdict
from pinchpoint.report.study.results import Entry, anchor, page


def verdict(**changes: Any) -> Verdict:
    known: dict[str, Any] = {
        "claim": "falls", "says": "It falls", "paper": "section 4.1", "kind": "trend", "metric": "robust_accuracy",
        "norm": "linf", "eps": 0.08, "where": "rank", "expected": "falls", "ruling": "supported",
        "sentence": "Supported: it falls (p < 0.05).", "reason": None, "effect": -0.9, "unit": "rho",
        "interval": Interval(low=-1.0, high=-0.8, level=0.75, method="bootstrap"), "seeds": [0, 1, 2],
        "by_seed": [-0.9, -0.8, -1.0], "p_value": 0.001, "p_corrected": 0.004, "floor": 0.0001, "tests": 4,
        "correction": "holm", "test": "Page’s trend test within seeds, exact",
    }  # fmt: skip
    return Verdict(**{**known, **changes})


@pytest.fixture(scope="module")
def summary(study: tuple[Summary, list[Run]]) -> Summary:
    return study[0]


def entry(summary: Summary, verdicts: list[Verdict], **changes: Any) -> Entry:
    known: dict[str, Any] = {
        "name": "demo", "title": "Does it fall? CIFAR-10 | part 1", "paper": "section 4", "about": "Smaller.\n\n* A list.",
        "scale": "quick", "summary": summary.model_copy(update={"verdicts": verdicts}),
        "command": "pinchpoint reproduce demo --scale quick",
        "seconds": 95.2, "machine": "2 cores", "figures": {one.name: f"figures/{one.name}.svg" for one in summary.families},
    }  # fmt: skip
    return Entry(**{**known, **changes})


def rows_of(text: str, head: str) -> list[list[str]]:
    """The cells of the first table that begins with this head."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_means_and_deviations_are_those_of_the_rows(summary: Summary) -> None:
    text = page([entry(summary, [verdict(metric="gap")])], "pinchpoint results")
    for family in summary.families:
        heads, _, *table = rows_of(text[text.index(f"### {family.title}") :], "level")
        assert heads == [
            "level", "compressibility", "clean accuracy", "robust accuracy, l∞ 0.08", "robust accuracy, l₂ 0.6",
            "gap, l∞ 0.08",
        ]  # fmt: skip
        keys = ["compressibility", "clean_accuracy", "robust_accuracy_linf", "robust_accuracy_l2", "gap_linf"]
        for level, cells in zip(family.levels, table, strict=True):
            rows = [r for r in summary.models if (r["family"], r["level"]) == (family.name, level.level)]
            assert cells[0] == level.label
            for key, shown in zip(keys, cells[1:], strict=True):
                column = [row[key] for row in rows]
                mean, _, std = shown.partition(" ± ")
                assert float(mean) == pytest.approx(np.mean(column), rel=6e-3)
                assert float(std) == pytest.approx(np.std(column, ddof=1), rel=6e-2, abs=6e-4)


def test_all_claims_stand_first_and_link_to_their_study(summary: Summary) -> None:
    verdicts = [
        verdict(),
        verdict(claim="b", says="a|b <i>", paper="", ruling="opposite", unit="share", effect=0.031, p_corrected=1e-9),
        verdict(claim="c", ruling="undecided", effect=None, p_corrected=None, sentence="Undecided, because x."),
        verdict(claim="d", unit="value", effect=12.345, p_corrected=0.9),
    ]
    one = entry(summary, verdicts)
    text = page([one], "pinchpoint results")
    assert text.startswith("# Results\n\nThis page is made from the records of the studies by `pinchpoint results`;")
    assert "4 verdicts (a claim about a whole curve has one a budget): 2 supported, 1 opposite, 1 undecided." in text
    link = "[demo](#does-it-fall-cifar-10--part-1)"
    assert anchor(one) == "does-it-fall-cifar-10--part-1"
    assert rows_of(text, "study")[2:] == [
        [link, "It falls (section 4.1)", "**supported**", "ρ -0.90", "0.004"],
        [link, r"a\|b &lt;i>", "**opposite**", "+3.1 points", "< 0.0001"],
        [link, "It falls (section 4.1)", "**undecided**", "–", "–"],
        [link, "It falls (section 4.1)", "**supported**", "+12.3", "0.9"],
    ]
    assert "\n**It falls** (section 4.1)\n\nSupported: it falls (p &lt; 0.05).\n" in text
    assert r"## Does it fall? CIFAR-10 \| part 1" in text


def test_claim_over_a_curve_is_one_row_and_a_table_of_its_own(summary: Summary) -> None:
    flat = {"effect": None, "p_corrected": None, "by_seed": [None] * 3, "reason": "it does not vary"}
    verdicts = [
        verdict(eps=8 / 255),
        verdict(eps=0.1, ruling="opposite", effect=0.5, by_seed=[0.4, 0.6, 0.5]),
        verdict(eps=0.5, ruling="undecided", **flat),
    ]
    text = page([entry(summary, verdicts)], "x")
    assert rows_of(text, "study")[2][2:] == [
        "**supported** at 8/255; **opposite** at 0.1; **undecided** at 0.5", "ρ -0.90 … ρ +0.50", "0.004",
    ]  # fmt: skip
    assert "rank, Page’s trend test within seeds, exact:" in text
    assert rows_of(text, "l∞ budget")[2:] == [
        ["8/255", "**supported**", "ρ -0.90", "-1.00 … -0.80", "0.004", ""],
        ["0.1", "**opposite**", "ρ +0.50", "+0.40 … +0.60", "0.004", ""],
        ["0.5", "**undecided**", "–", "–", "–", "it does not vary"],
    ]
    same = page([entry(summary, verdicts[:1] * 3)], "x")
    assert "**supported** at all 3 budgets" in same


def test_figures_notes_command_time_and_machine(summary: Summary) -> None:
    text = page([entry(summary, [verdict()])], "x")
    for family in summary.families:
        assert text.count(f"](figures/{family.name}.svg)") == 1
    for note in summary.notes:
        assert f"- {note}" in text.replace("&lt;", "<")
    models = len({row["run"] for row in summary.models})
    assert "```console\n$ pinchpoint reproduce demo --scale quick\n```" in text
    assert f"{models} models, seeds 0, 1, 2, 1 min 35 s; 2 cores." in text
    assert "Paper: section 4. Scale: quick.\n\nSmaller.\n\n* A list.\n" in text
    assert "\n\n\n" not in text


def test_study_without_claims_has_no_verdicts(summary: Summary) -> None:
    text = page([entry(summary, [], figures={}, seconds=None, paper="")], "x")
    assert "All claims" not in text
    assert "![" not in text
    assert "seeds 0, 1, 2; 2 cores." in text
    assert "Paper: not there." in text


def test_tables_have_the_same_cells_in_every_row(summary: Summary) -> None:
    text = page([entry(summary, [verdict(says="a|b\nc", reason="x|y"), verdict(eps=0.2, reason="x|y")])], "x")
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
