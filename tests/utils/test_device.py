"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.utils.device import device_of


def test_auto_is_an_accelerator_that_knows_float64_or_the_cpu():
    found = device_of("auto")
    assert torch.ones(1, dtype=torch.float64, device=found).sum().item() == 1.0
    assert found.type != "cpu" or not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cuda:63", "the device must be there, but got cuda:63; use auto or cpu."),
        ("gpu", "a device is auto, cpu, cuda or cuda:NUMBER, but got gpu; use auto or cpu."),
    ],
)
def test_what_is_refused(name, text):
    with refused(ConfigError, text):
        device_of(name)
