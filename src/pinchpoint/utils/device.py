"""Where computing happens, from a word."""

from __future__ import annotations

import torch

from pinchpoint.errors import ConfigError


def device_of(name: str) -> torch.device:
    """``auto`` is the first accelerator that knows float64 (bounds need it), or the CPU where there is none.

    Raises:
        ConfigError: for a device this machine does not have.

    >>> device_of("cpu")
    device(type='cpu')
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return torch.device("cpu") if here is None or here.type == "mps" else here
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("a device is auto, cpu, cuda or cuda:NUMBER", name, "use auto or cpu") from None
    missing = here is None or here.type != device.type or (device.index or 0) >= torch.accelerator.device_count()
    if device.type != "cpu" and missing:
        raise ConfigError("the device must be there", name, "use auto or cpu")
    return device
