"""Alpha-stable draws against SciPy's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from pinchpoint.train.noise import add_noise, alpha_stable


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.8, 2.0])
def test_quantiles_are_those_of_the_distribution(alpha):
    draws = alpha_stable((40_000,), alpha, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    quantiles = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    truth = stats.levy_stable.ppf(quantiles, alpha, 0.0)
    share_below = [(draws <= value).mean() for value in truth]
    np.testing.assert_allclose(share_below, quantiles, atol=4 * 0.5 / 200)  # four standard errors at most


def test_two_is_gaussian_of_variance_two():
    draws = alpha_stable((40_000,), 2.0, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    assert stats.kstest(draws, stats.norm(scale=np.sqrt(2)).cdf).pvalue > 1e-3


def test_noise_reaches_what_is_trained_and_scales():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    moved = []
    for scale in (0.1, 0.2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            add_noise(model.parameters(), 1.7, scale)
        after = [parameter.detach().clone() for parameter in model.parameters()]
        moved.append([second - first for first, second in zip(before, after, strict=True)])
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.data.copy_(value)
    assert all((delta == 0).all() for delta in (*moved[0][:2], *moved[1][:2]))
    for once, twice in zip(moved[0][2:], moved[1][2:], strict=True):
        torch.testing.assert_close(twice, 2 * once)
        assert (once != 0).all()
