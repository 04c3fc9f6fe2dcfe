"""Attacks made on one model and tried on another: closed forms, what equals what, and that nothing counts unchecked."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, dlr, margin, pgd, universal
from pinchpoint.errors import DataError, ModelError
from pinchpoint.evaluate import (
    access,
    accuracy,
    robust_accuracy,
    transfer_matrix,
    universal_accuracy,
    universal_transfer,
)
from pinchpoint.records import Access, TransferMatrix


class Weighing(nn.Module):
    """Class 1 where the weighted mean of the two pixels is at least one half."""

    def __init__(self, first, second):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([first, second]))

    def forward(self, x):
        height = x.flatten(1) @ self.weights - 0.5
        return torch.stack([-height, height], 1)


class Steps(Weighing):
    """The same answers, and a gradient that is zero everywhere."""

    def forward(self, x):
        return super().forward(torch.floor(x * 1000) / 1000)


FIRST, SECOND, BOTH = Weighing(1.0, 0.0), Weighing(0.0, 1.0), Weighing(0.5, 0.5)
# distances of the two pixels from one half; the last sample's second pixel is on the wrong side
APART = torch.tensor([[0.05, 0.03], [0.05, 0.3], [0.3, 0.05], [0.3, 0.3], [0.05, 0.12], [0.3, -0.04]])
Y = torch.tensor([0, 1, 0, 1, 0, 1])
X = 0.5 + torch.where(Y[:, None] == 1, APART, -APART)
THREAT = Threat("linf", 0.1)
TO_THE_EDGE = partial(pgd, steps=5, random_start=False, drop_fallen=False, objective=margin)


# --- examples --------------------------------------------------------------------------------------------------------


def test_closed_form():
    """The first pixel's adversary leaves the second pixel alone; the one of both moves both to the ball's edge."""
    found = transfer_matrix({"first": FIRST, "second": SECOND, "both": BOTH}, X, Y, THREAT, attack=TO_THE_EDGE)
    first, second = APART.T.double()
    moved = {"first": (0.1, 0.0), "second": (0.0, 0.1), "both": (0.1, 0.1)}
    judge = {
        "first": lambda a, b: first > a,
        "second": lambda a, b: second > b,
        "both": lambda a, b: first + second > a + b,
    }
    stands = {source: {target: judge[target](*moved[source]) for target in judge} for source in moved}
    right = {name: judge[name](0.0, 0.0) for name in judge}
    assert found.models == list(moved)
    assert found.clean_accuracy == [float(right[name].double().mean()) for name in judge]
    assert found.clean_accuracy == [1.0, 5 / 6, 1.0]
    for row, source in enumerate(moved):
        for column, target in enumerate(judge):
            finds = right[source] & right[target] & ~stands[source][source]
            assert found.robust_accuracy[row][column] == pytest.approx(float(stands[source][target].double().mean()))
            assert found.finds[row][column] == int(finds.sum())
            assert found.carried[row][column] == int((finds & ~stands[source][target]).sum())
    assert found.carried[0][1] == found.carried[1][0] == 0
    assert 0 < found.carried[0][2] < found.finds[0][2]
    assert (found.made, found.norm, found.eps, found.samples, found.fitted_on) == ("examples", "linf", 0.1, 6, None)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.5)])
def test_a_model_to_itself_is_robust_accuracy(trained, digits, norm, eps):
    x, y, threat = digits.x_test[:100], digits.y_test[:100], Threat(norm, eps)
    attack = partial(apgd, steps=10, objective=dlr)
    verdict = robust_accuracy(trained, x, y, threat, attacks={"apgd": attack})
    twin = transfer_matrix({"a": trained, "b": trained}, x, y, threat, attack=attack, batch_size=33)
    assert verdict.settled["apgd"] > 20
    assert twin.robust_accuracy == [[verdict.robust_accuracy] * 2] * 2
    assert twin.clean_accuracy == [accuracy(trained, x, y)] * 2
    assert twin.finds == twin.carried == [[verdict.settled["apgd"]] * 2] * 2
    assert TransferMatrix.model_validate_json(twin.model_dump_json()) == twin


def test_examples_driven_to_the_end_carry_further_than_those_at_the_boundary(trained, digits, small_net_of_digits):
    """Why they are the default."""
    x, y, threat = digits.x_test, digits.y_test, Threat("linf", 0.1)
    models = {"trained": trained, "other": small_net_of_digits}
    far = transfer_matrix(models, x, y, threat)
    near = transfer_matrix(models, x, y, threat, attack=partial(apgd, steps=20))
    assert far.robust_accuracy[0][1] <= near.robust_accuracy[0][1]  # to a weaker network either carries over
    assert far.robust_accuracy[1][0] < near.robust_accuracy[1][0] - 0.05
    assert far.robust_accuracy[0][0] < far.robust_accuracy[1][0] < far.clean_accuracy[0]


@pytest.fixture(scope="module")
def small_net_of_digits(digits):
    from pinchpoint.models import ModelConfig, build
    from pinchpoint.train import TrainConfig, train

    model = build(ModelConfig(hidden=(32,)), digits.input_shape, digits.classes, seed=1)
    train(model, digits, TrainConfig(epochs=10, learning_rate=3e-3), seed=1)
    return model


def test_examples_are_made_once_a_source_and_checked(trained, digits):
    x, y = digits.x_test[:20], digits.y_test[:20]
    calls = []

    def cheat(model, x, y, threat):
        calls.append(len(x))
        return 1.0 - x

    found = transfer_matrix({"a": trained, "b": trained, "c": trained}, x, y, THREAT, attack=cheat)
    assert calls == [20, 20, 20]
    assert accuracy(trained, 1.0 - x, y) < 0.5
    assert found.robust_accuracy == [[accuracy(trained, x, y)] * 3] * 3
    assert found.finds == [[0] * 3] * 3


# --- one perturbation ------------------------------------------------------------------------------------------------


def test_closed_form_of_one_perturbation():
    """On samples of class 1 alone, the perturbation of a pixel's adversary takes eps from that pixel."""
    rows = (Y == 1).nonzero().squeeze(1)
    data = X[rows], Y[rows]

    def fit(model, x, y, threat):
        return -threat.eps * (model.weights.detach() > 0).float()

    found = universal_transfer({"first": FIRST, "second": SECOND}, (X, Y), data, THREAT, attack=fit)
    first, second = APART[rows].T
    stands = [[first > 0.1, second > 0.0], [first > 0.0, second > 0.1]]
    assert found.robust_accuracy == [[pytest.approx(float(cell.double().mean())) for cell in row] for row in stands]
    assert found.robust_accuracy[0] != found.robust_accuracy[1]
    assert (found.made, found.samples, found.fitted_on) == ("universal", 3, 6)


def test_one_perturbation_on_its_own_model_is_universal_accuracy(trained, digits, small_net_of_digits):
    fit, held_out = (digits.x_train[:200], digits.y_train[:200]), (digits.x_test, digits.y_test)
    threat, models = Threat("linf", 0.15), {"trained": trained, "other": small_net_of_digits}
    found = universal_transfer(models, fit, held_out, threat, attack=partial(universal, steps=20))
    for place, model in enumerate(models.values()):
        assert found.robust_accuracy[place][place] == universal_accuracy(model, fit, held_out, threat, steps=20)[0]
        assert found.robust_accuracy[place][1 - place] < found.clean_accuracy[1 - place] - 0.1
        assert found.finds[place][place] == found.carried[place][place] > 0


# --- access ----------------------------------------------------------------------------------------------------------


def test_a_surrogate_that_errs_elsewhere_does_not_replace_the_gradient():
    found = access(FIRST, {"second": SECOND}, X, Y, THREAT, attack=TO_THE_EDGE, queries=1)
    stands = float((APART[:, 0] > 0.1).double().mean())
    assert (found.clean_accuracy, found.white_box, found.transfer) == (1.0, stands, {"second": 1.0})
    assert found.only_black_box == 0
    assert found.only_white_box == round(6 * (found.black_box - stands))
    many = access(FIRST, {"itself": FIRST}, X, Y, THREAT, attack=TO_THE_EDGE, queries=200)
    assert many.white_box == many.transfer["itself"] == many.queries == many.black_box == stands
    assert (many.only_white_box, many.only_black_box, many.query_budget) == (0, 0, 200)
    assert Access.model_validate_json(many.model_dump_json()) == many


def test_masked_gradients_show_in_what_only_queries_find():
    found = access(Steps(1.0, 0.0), {}, X, Y, THREAT, attacks={"pgd": TO_THE_EDGE}, queries=200)
    assert (found.white_box, found.transfer) == (1.0, {})
    assert found.queries == found.black_box == float((APART[:, 0] > 0.1).double().mean())
    assert (found.only_white_box, found.only_black_box) == (0, 3)


# --- mistakes --------------------------------------------------------------------------------------------------------


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such layer")


def test_mistakes_are_one_sentence_that_names_the_model():
    with refused(ModelError, "attacks are transferred between one model or more, but got none; give models by name."):
        transfer_matrix({}, X, Y, THREAT)
    with pytest.raises(ModelError, match=r"a model must take the inputs it is given, but got broken: .*no such layer"):
        transfer_matrix({"first": FIRST, "broken": Broken()}, X, Y, THREAT, attack=lambda m, x, y, t: x)
    with pytest.raises(ModelError, match=r"but got broken: .*no such layer"):
        access(FIRST, {"broken": Broken()}, X, Y, THREAT, queries=5)
    with pytest.raises(DataError, match="but got first: "):
        universal_transfer({"first": FIRST}, (X + 1, Y), (X, Y), THREAT)
