"""Estimated gradients against exact ones, and attacks along them against attacks along gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import (
    Differences,
    Threat,
    apgd,
    followable,
    gradient_doubt,
    pgd_by_differences,
    standard_ensemble,
)
from pinchpoint.attack.gradient import fooled
from pinchpoint.attack.samples import check_points
from pinchpoint.errors import DataError, ThreatError
from pinchpoint.evaluate import default_attacks, robust_accuracy, smallest_eps


class Detached(nn.Module):
    """The same answers, and no gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).detach()


class Reversed(nn.Module):
    """The same answers, and a gradient that points back."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return 2.0 * logits.detach() - logits


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("change", [Detached, Reversed])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.45)])
def test_a_hidden_gradient_does_not_look_like_robustness(trained, digits, change, norm, eps):
    x, y, threat = digits.x_test[:60], digits.y_test[:60], Threat(norm, eps)
    truth = robust_accuracy(trained, x, y, threat).robust_accuracy
    assert 0.2 < truth < 0.8
    hidden = change(trained)
    assert robust_accuracy(hidden, x, y, threat).robust_accuracy <= truth + 0.05
    assert robust_accuracy(hidden, x, y, threat, attacks="quick").robust_accuracy <= truth + 0.05


def test_what_was_added_is_said(trained, digits):
    x, y, threat = digits.x_test[:10], digits.y_test[:10], Threat("linf", 0.08)
    sentence = "the model is not differentiable in its input, so gradient attacks say nothing about it"
    with pytest.warns(UserWarning, match=f"{sentence}; attacks that need none were added"):
        verdict = robust_accuracy(Detached(trained), x, y, threat)
    assert verdict.warnings == (sentence,)
    assert verdict.attacks == ("pgd-differences", "square")
    with pytest.warns(UserWarning, match="contradicted"):
        verdict = robust_accuracy(Reversed(trained), x, y, threat)
    assert verdict.attacks == ("apgd-ce", "apgd-dlr", "pgd-differences", "square")


def test_honest_models_are_attacked_as_before(trained, digits, recwarn):
    x, y, threat = digits.x_test[:10], digits.y_test[:10], Threat("linf", 0.08)
    assert list(default_attacks(trained, x)) == ["apgd-ce", "apgd-dlr"]
    assert list(standard_ensemble(trained, x)) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert robust_accuracy(trained, x, y, threat).warnings == ()
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]
    assert followable(trained, x, threat) is trained


def test_on_a_linear_model_the_estimate_is_the_gradient_on_average():
    weight = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(6, 1, bias=False)
    model.weight.data.copy_(weight)
    x = torch.zeros(1, 6, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad(Differences(Detached(model), 0.1, directions=4000)(x).sum(), x)
    torch.testing.assert_close(gradient, weight, rtol=0, atol=0.15)


def test_attacks_along_estimates_find_what_those_along_gradients_find(trained, digits):
    x, y, threat = digits.x_test[:60], digits.y_test[:60], Threat("linf", 0.08)
    led = int(fooled(trained(apgd(trained, x, y, threat)), y).sum())
    blind = int(fooled(trained(pgd_by_differences(Detached(trained), x, y, threat)), y).sum())
    assert blind >= 0.85 * led
    assert led > 20


def test_the_smallest_budgets_of_a_model_without_gradient(trained, digits):
    x, y = digits.x_test[:40], digits.y_test[:40]
    exact, estimated = (smallest_eps(model, x, y, "linf", 0.3)[0] for model in (trained, Detached(trained)))
    both = torch.isfinite(exact) & torch.isfinite(estimated) & (exact > 0)
    assert int(both.sum()) > 30
    assert float((estimated[both] / exact[both]).median()) < 1.4


class Squeezed(Detached):
    """Answers of one sample come without their batch."""

    def forward(self, x):
        return super().forward(x).squeeze(0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_sample_may_be_answered_without_its_batch(trained, digits):
    x, y, threat = digits.x_test[:20], digits.y_test[:20], Threat("linf", 0.08)
    squeezed, plain = (pgd_by_differences(model(trained), x, y, threat, steps=10) for model in (Squeezed, Detached))
    assert torch.equal(squeezed, plain)
    for sample in range(4):
        of_one, labels = x[sample : sample + 1], y[sample : sample + 1]
        squeezed, plain = (
            pgd_by_differences(model(trained), of_one, labels, threat, steps=10) for model in (Squeezed, Detached)
        )
        assert torch.equal(squeezed, plain)


def test_samples_are_read_as_other_attacks_read_them(trained, digits):
    x, y, threat = digits.x_test[:3], digits.y_test[:3], Threat("linf", 0.1)
    model = Detached(trained)
    assert not pgd_by_differences(model, x.clone().requires_grad_(), y, threat, steps=2).requires_grad
    outside = x.clone()
    outside[0, 0, 0, 0] = 1.5
    wrong = (trained(outside).argmax(1) + 1) % 10  # so that nothing is left to attack
    for other in (x[:0], x.byte(), x.numpy(), outside, x * torch.nan):
        with pytest.raises(DataError) as expected:
            check_points(other, threat)
        with refused(DataError, str(expected.value)):
            pgd_by_differences(model, other, wrong, threat)
        with refused(DataError, str(expected.value)):
            followable(model, other, threat)
    for other in (x[:0], x.byte(), x.numpy()):
        with pytest.raises(DataError) as expected:
            check_points(other)
        with refused(DataError, str(expected.value)):
            gradient_doubt(model, other)
    with refused(
        ThreatError, 'a threat must be a pinchpoint.Threat, but got 0.1; write for example Threat("linf", 8 / 255).'
    ):
        pgd_by_differences(model, x, y, 0.1)
