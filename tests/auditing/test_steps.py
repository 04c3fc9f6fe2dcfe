"""Steps of an audit, which studies do one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pinchpoint.auditing import AuditConfig, ThreatConfig, steps


def test_the_mechanism_of_a_convolutional_network_is_that_of_all_its_layers_and_its_first_is_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    moved = x + 0.1 * torch.randn_like(x)
    threat = ThreatConfig(norm="linf", eps=0.1)
    mechanism = steps.explain(model, x, moved, threat, AuditConfig(k_share=0.3))
    assert [layer.name for layer in mechanism.layers] == ["0", "3"]
    # patches as the kernel sees them, each counted by its energy
    k = 2
    directions = np.linalg.svd(model[0].weight.detach().reshape(4, 9).numpy())[2][:k]
    patches = F.unfold(moved - x, 3).transpose(1, 2).numpy()
    shares = np.sqrt(((patches @ directions.T) ** 2).sum((1, 2)) / (patches**2).sum((1, 2)))
    assert mechanism.layers[0].alignment == pytest.approx(shares.mean(), rel=1e-9)
    # what the head reads
    z, z_adv = (model[:3](inputs).detach().numpy() for inputs in (x, moved))
    relative = np.linalg.norm(z_adv - z, axis=1) / np.linalg.norm(z, axis=1)
    assert mechanism.amplification == pytest.approx(relative.mean(), rel=1e-9)
