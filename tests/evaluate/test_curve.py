"""The smallest eps of each sample, and curves read off it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat, apgd, logit_scale, scaled_cross_entropy
from pinchpoint.errors import DataError, ThreatError
from pinchpoint.evaluate import accuracy, logits_of, robust_accuracy, robust_curve, smallest_eps, within

BUDGETS = {"linf": 0.16, "l2": 1.0, "l1": 6.0}


@pytest.fixture(scope="module", params=BUDGETS)
def searched(request, trained, digits):
    norm = request.param
    x, y = digits.x_test[:200], digits.y_test[:200]
    return norm, x, y, *smallest_eps(trained, x, y, norm, BUDGETS[norm])


def test_every_smallest_eps_holds_in_numpy(searched, trained):
    norm, x, y, eps, where = searched
    delta = (where.double().numpy() - x.double().numpy()).reshape(200, -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    wrong = (trained(where).argmax(1) != y).numpy()
    clean = (trained(x).argmax(1) != y).numpy()
    eps = eps.numpy()
    assert eps.dtype == np.float64
    np.testing.assert_array_equal(eps == 0, clean)
    np.testing.assert_array_equal(np.isfinite(eps), wrong)
    np.testing.assert_allclose(size[wrong], eps[wrong], rtol=1e-6, atol=1e-12)
    assert eps[wrong].max() <= BUDGETS[norm]
    assert (size[~wrong] == 0).all()
    assert wrong.sum() - clean.sum() > 10


@pytest.mark.long
def test_no_curve_is_above_autopgd_at_each_budget(searched, trained):
    """AutoPGD-100 with cross-entropy at six budgets. Two samples of 200 are what another seed of AutoPGD moves."""
    norm, x, y, eps, _ = searched
    objective = scaled_cross_entropy(logit_scale(logits_of(trained, x)))
    attacks = {"apgd": lambda m, a, b, t: apgd(m, a, b, t, objective=objective)}
    above = []
    for budget in np.linspace(0, BUDGETS[norm], 7)[1:]:
        standing = int((~robust_accuracy(trained, x, y, Threat(norm, float(budget)), attacks=attacks).fallen).sum())
        above.append(int((eps > budget).sum()) - standing)
    assert max(above) <= 2, above
    assert sum(above) <= 2, above


@pytest.mark.parametrize("norm", BUDGETS)
def test_a_curve_without_attacks_is_read_off_one_search(searched, trained, norm):
    if searched[0] != norm:
        return
    _, x, y, eps, _ = searched
    budgets = [0.0, *np.linspace(0, BUDGETS[norm], 6)[1:].tolist()]
    calls = 0

    class Counted(nn.Module):
        def forward(self, inputs):
            nonlocal calls
            calls += inputs.requires_grad
            return trained(inputs)

    curve = robust_curve(Counted(), x, y, [Threat(norm, budget) for budget in budgets])
    assert calls == 62  # 30 steps with each objective, the slope at the start, and whether there is any
    assert [verdict.robust_accuracy for verdict in curve] == pytest.approx(
        [float((eps > budget).double().mean()) for budget in budgets]
    )
    assert curve[0].robust_accuracy == accuracy(trained, x, y)
    shares = [verdict.robust_accuracy for verdict in curve]
    assert shares == sorted(shares, reverse=True)
    for verdict in curve:
        assert within(verdict.adversarial, x, verdict.threat).all()
        assert torch.equal(trained(verdict.adversarial).argmax(1) != y, verdict.fallen)
        assert set(verdict.stage) <= {"clean", "minimum-norm", "survived"}
        assert verdict.rejected == 0


def test_what_is_known_counts_where_it_is_better(trained, digits):
    x, y = digits.x_test[:60], digits.y_test[:60]
    known = robust_accuracy(trained, x, y, Threat("linf", 0.08))
    after = robust_curve(trained, x, y, [Threat("linf", 0.09), Threat("linf", 0.12)], known=known)
    for verdict in after:
        assert (verdict.fallen | ~known.fallen).all()
        assert torch.equal(trained(verdict.adversarial).argmax(1) != y, verdict.fallen)
        assert within(verdict.adversarial, x, verdict.threat).all()
    assert {"clean", "minimum-norm", "survived"} <= set(after[0].stage)


def test_the_same_in_batches_of_any_size(trained, digits):
    x, y = digits.x_test[:90], digits.y_test[:90]
    whole, _ = smallest_eps(trained, x, y, "linf", 0.16, steps=20)
    parts, _ = smallest_eps(trained, x, y, "linf", 0.16, steps=20, batch_size=32)
    assert int((~torch.isclose(whole, parts, rtol=1e-3)).sum()) <= 2


def test_bad_input_is_refused(trained, digits):
    x, y = digits.x_test[:5], digits.y_test[:5]
    with pytest.raises(ThreatError, match="eps must be zero or more"):
        smallest_eps(trained, x, y, "linf", -0.1)
    with pytest.raises(DataError, match=r"inputs must be finite and lie in the box \[0, 1\]"):
        smallest_eps(trained, x + 1, y, "linf", 0.1)
    with pytest.raises(DataError, match=r"labels must lie in 0 \.\.\. 9"):
        smallest_eps(trained, x, y + 10, "linf", 0.1)
    eps, where = smallest_eps(trained, x, y, "linf", 0.0)
    assert torch.equal(where, x)
    assert set(eps.tolist()) <= {0.0, float("inf")}
