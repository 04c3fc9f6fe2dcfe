"""Cells made quickly are those that are validated whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import ConfigError, PinchpointError
from pinchpoint.study import Cell
from pinchpoint.study.config.cell_cache import Maker, look_up
from pinchpoint.study.config.study import make_cell

BASE = {"model": {"hidden": [8]}, "train": {"epochs": 3}, "audit": {"steps": 5}, "penalty": {"l1": "1e-3"}}
overrides = st.dictionaries(
    st.sampled_from(
        ["model.rank", "model.hidden", "train.epochs", "penalty.l1", "penalty", "train", "threads", "device", "seed",
         "audit.stages", "surrogate", "adversarial", "transfer", "constant_frobenius", "train.trades_beta", "nonsense.x",
         "compress", "penalty.l1.x"]
    ),
    st.sampled_from([None, 1, 2.5, "1e-3", [8], [8, 9], {}, {"l1": 2}, "cpu", "gpu", ["attack"], True, {"eps": 0.1},
                     ["attack", "transferred"], {"kind": "quantize", "bits": 4}, {"kind": "odd"}]),
    max_size=3,
)  # fmt: skip


def outcome(make) -> Cell | str:
    """What is made, or said."""
    try:
        return make()
    except PinchpointError as error:
        return f"{type(error)} {error}"


@given(st.lists(overrides, min_size=1, max_size=4))
def test_a_maker_makes_and_refuses_what_whole_validation_does(many):
    maker = Maker(BASE)
    for one in many:
        expected, made = outcome(lambda: make_cell(BASE, one, "here")), outcome(lambda: maker.cell(one, "here"))  # noqa: B023
        assert made == expected
        if isinstance(made, Cell):
            assert made.model_dump(mode="json") == expected.model_dump(mode="json")
            assert hash(made) == hash(expected)


def test_cells_share_the_sections_they_have_alike():
    maker = Maker(BASE)
    one, other = maker.cell({"penalty.l1": 1}, "here"), maker.cell({"penalty.l1": 2}, "here")
    assert one.train is other.train
    assert one.audit is other.audit
    assert one.penalty is not other.penalty
    assert maker.cell({"penalty.l1": 1, "threads": 2}, "here").penalty is one.penalty


def test_values_that_look_alike_are_not_mistaken_for_each_other():
    maker = Maker({})
    assert maker.cell({"frobenius_scale": 1}, "here").frobenius_scale == 1.0
    assert maker.cell({"constant_frobenius": True}, "here").constant_frobenius is True
    with pytest.raises(ConfigError):
        maker.cell({"threads": "many"}, "here")
    assert maker.cell({"threads": 3}, "here").threads == 3


def test_a_value_is_looked_up_by_its_path():
    cell = make_cell(BASE, {"adversarial": {"eps": 0.1}})
    assert look_up(cell, "model.hidden") == (8,)
    assert look_up(cell, "penalty.l1") == 0.001
    assert look_up(cell, "adversarial.eps") == 0.1
    assert look_up(Cell(), "adversarial.eps") is None
    assert (
        look_up(
            make_cell({}, {"surrogate": {"set": {"a": 1}}, "audit.stages": ["attack", "transferred"]}),
            "surrogate.set.a",
        )
        == 1
    )


def test_what_a_cell_checks_of_one_value_a_maker_checks_too():
    for one, said in (
        ({"device": "gpu"}, "Input should be auto, cpu, cuda or cuda:N"),
        ({"threads": 0}, "greater than"),
    ):
        with pytest.raises(ConfigError, match=said):
            Maker({}).cell(one, "here")
