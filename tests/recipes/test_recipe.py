"""What belongs to a recipe's identity, and norms that are kept at a multiple of the first ones."""

from __future__ import annotations

import pytest
import torch

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.models import build
from pinchpoint.recipes.recipe import Recipe, make
from pinchpoint.train.parallel import Alone
from pinchpoint.utils.config import validate


def recipe(**options):
    content = {"model": {"hidden": [16, 8]}, "train": {"epochs": 2}, "device": "cpu", **options}
    return validate(Recipe, content, "the recipe")


def test_options_that_came_later_leave_older_ids_alone():
    plain = recipe().identity()
    assert "frobenius_scale" not in plain
    assert "group_labels" not in plain["data"]
    assert plain == recipe(frobenius_scale=1, data={"group_labels": None, "workers": 7}).identity()
    groups = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert recipe(data={"group_labels": groups}).identity()["data"]["group_labels"] == groups
    assert recipe(constant_frobenius=True, frobenius_scale=2).identity()["frobenius_scale"] == 2.0


def test_norms_are_kept_at_a_multiple_of_the_first(digits):
    """Of hidden layers, from before the first step on; the head is free."""
    learned = recipe(constant_frobenius=True, frobenius_scale=3.0)
    first = build(learned.model, digits.input_shape, digits.classes, seed=4)
    seen = []

    def watch(model):
        seen.append([float(model[place].weight.detach().norm()) for place in (1, 3, 5)])

    from pinchpoint.recipes.recipe import continue_training

    model = build(learned.model, digits.input_shape, digits.classes, seed=4)
    continue_training(model, learned, digits, seed=4, engine=Alone(torch.device("cpu")), after_step=watch)
    for place, name in ((0, 1), (1, 3)):
        wanted = 3.0 * float(first[name].weight.detach().norm())
        assert [norms[place] for norms in seen] == pytest.approx([wanted] * len(seen), rel=1e-6)
    assert seen[-1][2] != pytest.approx(seen[0][2], rel=1e-3)


def test_the_scale_reaches_the_first_step(digits):
    """One step of training from weights that are three times as large, not from the plain ones."""
    options = {"train": {"epochs": 1, "learning_rate": 1e-8, "weight_decay": 0}, "constant_frobenius": True}
    models = [
        make(recipe(**options, frobenius_scale=scale), digits, seed=4, engine=Alone(torch.device("cpu")))[0]
        for scale in (1.0, 3.0)
    ]
    x = digits.x_test
    torch.testing.assert_close(models[1](x), 9.0 * models[0](x), rtol=1e-3, atol=1e-3)


def test_a_scale_without_constant_norms_is_one_sentence():
    with refused(
        ConfigError,
        "the recipe: frobenius_scale needs constant_frobenius, but got 2.0; add constant_frobenius: true.",
    ):
        recipe(frobenius_scale=2.0)
    with refused(
        ConfigError, "the recipe: frobenius_scale: Input should be greater than 0, but got 0; use more than 0."
    ):
        recipe(constant_frobenius=True, frobenius_scale=0)
