"""Larger or smaller weights and nothing else: the control for what is scale in robustness, and not structure."""

from __future__ import annotations

import copy

from torch import nn

from pinchpoint.compress.constraints import check_factor, factors
from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import linear_modules
from pinchpoint.measure.weights import computed_tensors


def rescale(model: nn.Module, factor: float, *, include_head: bool = False) -> nn.Module:
    """A copy of the model with the weights of its hidden layers multiplied by ``factor``, each tensor once.

    Every compressibility stays, every Frobenius norm is multiplied. In a ReLU network of n hidden layers without biases all
    logits are multiplied by factor^n, and no decision changes. Batch norms keep statistics of the weights that were, so a
    network with them would only be broken.

    Args:
        model: any module.
        factor: positive.
        include_head: also the last layer.

    Raises:
        ConfigError: for a factor that is not positive and finite.
        ModelError: for a layer that computes its weight, and a batch norm with running statistics.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> x = torch.rand(5, 4)
    >>> torch.equal(rescale(model, 2.0)(x), 2.0 * model(x))
    True
    """
    check_factor(factor)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            seen = f"{type(module).__name__} at '{name}'"
            remedy = "take a network without, or train with constant_frobenius and frobenius_scale"
            raise ModelError("rescaling needs a network without running statistics", seen, remedy)
    rescaled = copy.deepcopy(model, computed_tensors(model))
    found = linear_modules(rescaled)
    done: set[int] = set()
    for name, module in found if include_head else found[:-1]:
        parts = factors("rescaling needs layers that own their weights", name, module)
        for parameter in parts:
            if id(parameter) not in done:
                parameter.data.mul_(factor ** (1.0 / len(parts)))
                done.add(id(parameter))
    return rescaled
