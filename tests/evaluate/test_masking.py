"""Models with one fault each must be told from healthy ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat
from pinchpoint.evaluate import masking_warnings, robust_accuracy

THREAT = Threat("linf", 0.05)


class Faulty(nn.Module):
    """A healthy model with something before or after it."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before or (lambda x: x), after or (lambda x: x)

    def forward(self, x):
        return self.after(self.model(self.before(x)))


@pytest.fixture(scope="module")
def warned(trained, digits):
    x, y = digits.x_test[:60], digits.y_test[:60]

    def warnings(model, threat=THREAT, **options):
        return masking_warnings(model, x, y, threat, samples=40, queries=200, **options)

    return warnings


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.3), Threat("l1", 2.0), Threat("linf", 0.05, box=None)])
def test_a_healthy_model_gets_no_warning(trained, warned, threat):
    assert warned(trained, threat) == []


@pytest.mark.parametrize("scale", [1e-3, 2.0])
def test_a_healthy_model_gets_none_at_another_scale(trained, warned, scale):
    assert warned(Faulty(trained, after=lambda z: scale * z)) == []


def test_quantised_inputs_have_no_gradient_and_fall_to_queries(trained, digits, warned):
    model = Faulty(trained, before=lambda x: (8 * x).round() / 8)
    found = warned(model, Threat("linf", 0.15))
    right = int((model(digits.x_test[:60]).argmax(1) == digits.y_test[:60]).sum())
    assert right > 40
    assert found[0] == "the gradient is zero at 40 of 40 samples"
    assert any(sentence.startswith("a black-box attack fools") for sentence in found)


def test_a_low_temperature_saturates_cross_entropy(trained, warned):
    found = warned(Faulty(trained, after=lambda z: z / 1e-4))
    assert len(found) == 1
    assert found[0].startswith("cross-entropy saturates in float32 at ")


def test_a_softmax_of_low_temperature_has_no_gradient(trained, warned):
    found = warned(Faulty(trained, after=lambda z: (z / 1e-4).softmax(1)))
    assert found[0].startswith("the gradient is zero at ")


def test_noise(trained, warned):
    torch.manual_seed(0)
    rng = torch.random.get_rng_state()
    found = warned(Faulty(trained, before=lambda x: x + 0.01 * torch.randn_like(x)))
    assert found[0].startswith("the model is randomised: two passes in eval mode differ at ")
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_a_stopped_gradient(trained, warned):
    sentence = "the model is not differentiable in its input, so gradient attacks say nothing about it"
    assert warned(Faulty(trained, before=torch.Tensor.detach)) == [sentence]


def test_a_gradient_that_points_nowhere(trained, warned):
    """Forward as before; backward through a coarse rounding plus a wave of tiny amplitude and huge slope."""

    def ripple(x):
        return x.detach() + 1e-3 * torch.sin(4e4 * x) - 1e-3 * torch.sin(4e4 * x).detach()

    found = warned(Faulty(trained, before=ripple), Threat("linf", 0.06))
    assert any("standing" in sentence or "does not rise" in sentence for sentence in found), found


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_a_gradient_that_points_back(trained, warned):
    found = warned(Faulty(trained, before=Reversed.apply), Threat("linf", 0.1))
    assert any(sentence.startswith("the loss does not rise with steps") for sentence in found), found
    assert any(sentence.startswith("a budget that reaches the middle of the box leaves") for sentence in found), found
    assert any(sentence.startswith("a black-box attack fools") for sentence in found), found


def test_a_model_that_leaves_eval_mode(trained, warned):
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.model = nn.Dropout(0.0), trained

        def forward(self, x):
            self.dropout.train()
            return self.model(self.dropout(x))

    model = Restless()
    model.dropout.eval()
    found = warned(model)
    assert found[0] == "the model leaves eval mode when it is called (dropout)"
    assert not model.dropout.training


def test_a_verdict_is_taken_as_given(trained, digits, warned):
    """White-box attacks that did nothing are beaten by queries."""
    x, y = digits.x_test[:60], digits.y_test[:60]
    idle = robust_accuracy(trained, x, y, Threat("linf", 0.1), attacks={"idle": lambda m, a, b, t: a})
    found = warned(trained, Threat("linf", 0.1), verdict=idle)
    assert len(found) == 1
    assert found[0].endswith("of the 40 samples that the white-box attacks left standing")


def test_nothing_to_look_at(trained, digits):
    x, y = digits.x_test[:5], digits.y_test[:5]
    assert masking_warnings(trained, x, (y + 1) % 10, THREAT) == []
    assert masking_warnings(trained, x, y, Threat("linf", 0.0)) == []
