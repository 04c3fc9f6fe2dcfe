"""What is not seen as a linear operator, and why."""

from __future__ import annotations

import re
from collections.abc import Set

from torch import nn

from pinchpoint.records import Skipped

_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.batchnorm._BatchNorm,
)

_REASONS = (
    (r"(pos_?emb|position|rel(ative)?_pos).*", "a positional embedding or bias is added, not multiplied with"),
    (r"(cls|reg|dist|mask|class).*(token|emb)", "a token stands beside the inputs and multiplies nothing"),
    (r"bias(_k|_v)?|[qkv]_bias|logit_bias", "a bias without a layer is added, not multiplied with"),
    (r"logit_scale|gamma(_?\d)?|(layer_?)?scale", "a scale of single numbers is no matrix"),
)
"""By a parameter's name. Such a parameter may look like a matrix, and is none."""


def skipped(model: nn.Module, seen: Set[int]) -> list[Skipped]:
    """Modules and parameters that are not seen, in the order of registration.

    Args:
        model: the model.
        seen: ``id`` of each parameter that belongs to a layer.
    """
    found: list[Skipped] = []
    known = set(seen)
    for name, module in model.named_modules():
        own = {key: value for key, value in module.named_parameters(recurse=False) if id(value) not in known}
        known |= {id(value) for value in own.values()}
        if isinstance(module, _NORMS) and (own or _uses_batch_statistics(module)):
            numbers = sum(value.numel() for value in own.values())
            found.append(Skipped(name=name, kind=type(module).__name__, reason=_why_norm(module), parameters=numbers))
            continue
        for key, value in own.items():
            path = f"{name}.{key}" if name else key
            reason = _why(key, type(module).__name__, tuple(value.shape))
            found.append(Skipped(name=path, kind="parameter", reason=reason, parameters=value.numel()))
    return found


def _uses_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None


def _why_norm(module: nn.Module) -> str:
    if _uses_batch_statistics(module):
        return "it normalises by each batch's own statistics, also in eval mode: not a linear operator"
    return "it normalises by its input's own statistics: not a linear operator"


def _why(key: str, owner: str, shape: tuple[int, ...]) -> str:
    for pattern, reason in _REASONS:
        if re.fullmatch(pattern, key.lower()):
            return reason
    return f"a parameter of {owner} of shape {shape}, not known to be a linear operator"
