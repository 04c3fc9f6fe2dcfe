"""A verdict on a model that gives a sample several answers comes with a sentence that says so, once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import pinchpoint as pp
from pinchpoint.errors import PinchpointWarning
from pinchpoint.evaluate import (
    Samples,
    access,
    accuracy,
    adversarial_loss,
    attack_sheet,
    masking_warnings,
    not_asked,
    one_answer,
    smallest_eps,
    transfer_matrix,
    universal_accuracy,
)
from pinchpoint.evaluate.named_attacks import Plan

X = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
THREAT = pp.Threat("linf", 0.05)


class Odd(nn.Module):
    """A linear layer and something that is not what it seems."""

    def __init__(self, what=lambda m, z: z):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.what, self.calls = nn.Linear(6, 3), what, 0

    def forward(self, x):
        return self.what(self, self.layer(x))


def counted(model, z):
    model.calls += 1
    return z * model.calls


ODD = {
    "centred": (lambda m, z: z - z.mean(0), "whatever else is in its batch"),
    "sorted": (lambda m, z: z.sort(0)[0], "whatever else is in its batch"),
    "random": (lambda m, z: z + torch.rand_like(z), "the same at every call"),
    "counted": (counted, "the same at every call"),
    "never alone": (lambda m, z: nn.functional.batch_norm(z, None, None, training=True), "one sample alone"),
}
JUDGES = {
    "accuracy": lambda m: accuracy(m, X, Y),
    "robust_accuracy": lambda m: pp.robust_accuracy(m, X, Y, THREAT, attacks={}),
    "robust_curve": lambda m: pp.robust_curve(m, X, Y, [pp.Threat("l2", 1e-3), pp.Threat("l2", 2e-3)]),
    "smallest_eps": lambda m: smallest_eps(m, X, Y, "linf", 1e-3, steps=2),
    "adversarial_loss": lambda m: adversarial_loss(m, X, Y, THREAT, steps=2),
    "universal_accuracy": lambda m: universal_accuracy(m, (X, Y), (X, Y), THREAT, steps=2),
    "transfer_matrix": lambda m: transfer_matrix({"it": m}, X, Y, THREAT, attack=lambda m, x, y, t: x),
    "access": lambda m: access(m, {}, X, Y, THREAT, attacks={}, queries=1),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_judge_says_so_once(kind):
    what, text = ODD[kind]
    for name in JUDGES if kind == "centred" else ("accuracy", "robust_accuracy"):
        with pytest.warns(
            PinchpointWarning, match=f"the verdict holds for no other batches or calls: a model must .*{text}"
        ) as told:
            JUDGES[name](Odd(what).eval())
        assert len(told) == 1, name


def test_an_honest_model_is_judged_without_a_word_in_whatever_mode_it_is():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, judge in JUDGES.items():
            judge(model)
            assert model.training, name


def test_a_sheet_and_an_audit_write_it_down():
    model = Odd(ODD["centred"][0]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = attack_sheet(model, Samples(X, Y), [THREAT], Plan("pgd", steps=2, certify_s=0.2))
        report = pp.audit(model, (X, Y), [THREAT], standard=False)
    told = sheet.threats[0].warnings
    assert sum("the verdict holds for no other batches" in one for one in told) == 1
    assert any("not certified" in one for one in told)
    assert any("the verdict holds for no other batches" in one for one in report.warnings)
    assert report.threats[0].certified is None


def test_signs_of_masked_gradients_name_it():
    told = masking_warnings(Odd(ODD["sorted"][0]).eval(), X, Y, THREAT, steps=2, queries=2)
    assert sum("the verdict holds for no other batches" in one for one in told) == 1
    told = masking_warnings(Odd(ODD["random"][0]).eval(), X, Y, THREAT, steps=2, queries=2)
    assert any("the model is randomised" in one for one in told)
    assert not any("the verdict holds for no other batches" in one for one in told)


def test_it_is_asked_once_however_many_entries_are_nested():
    model = Odd(counted).eval()
    with one_answer(model, X, warn=False) as first, one_answer(model, X, warn=False) as second:
        assert "the same at every call" in first
        assert second is None
    with not_asked(model), one_answer(model, X, warn=False) as third:
        assert third is None
    with one_answer(model, X, warn=False) as again:
        assert again is not None


def test_one_at_a_time_is_how_such_a_model_is_judged():
    centred, plain = Odd(lambda m, z: z * len(z) - z.sum(0) * (len(z) - 1) / len(z)), Odd()  # alone: the layer itself
    y = plain(X).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = pp.robust_accuracy(pp.OneAtATime(centred), X, y, THREAT)
    assert alone.stage == pp.robust_accuracy(plain, X, y, THREAT).stage


def test_what_robustness_cannot_be_read_without_is_said():
    model, plan = Odd().eval(), Plan("fgsm")
    wrong = (model(X).argmax(1) + 1) % 3
    said = attack_sheet(model, Samples(X, wrong), [THREAT], plan).threats[0].warnings
    assert said == [
        "0 of 12 samples are right without attack, no more than by guessing among 3 classes: are these the model's labels "
        "and its normalisation?"
    ]
    constant = Odd(lambda m, z: z * 0 + torch.tensor([0.0, 1.0, 0.0])).eval()
    said = attack_sheet(constant, Samples(X, Y * 0 + 1), [THREAT], plan).threats[0].warnings
    assert said[0] == "all 12 labels are 1: a model that always answers that would be right everywhere"
    assert "gradient" in said[1]  # of a constant there is none
    assert attack_sheet(model, Samples(X, model(X).argmax(1)), [THREAT], plan).threats[0].warnings == []


def test_a_model_that_takes_no_sample_alone_is_given_it_twice_while_it_is_judged():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    x = torch.rand(5, 4)
    with one_answer(model, x, warn=False) as doubt:
        assert "one sample alone" in str(doubt)
        assert torch.equal(model(x[:1]), model(torch.cat([x[:1], x[:1]]))[:1])
        assert model(x).shape == (5, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(x[:1])
