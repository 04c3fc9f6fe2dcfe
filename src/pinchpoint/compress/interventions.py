"""What is done to the weights after each training step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import HasMatrix, linear_modules, weight_matrix
from pinchpoint.measure.spectrum import frobenius_norm


class ConstantFrobenius:
    """Rescale every linear layer to the Frobenius norm it had when this object was made.

    It separates structure from scale: a penalty can then change a layer's shape of spectrum, not its size (paper,
    motivating experiment). Call it after each optimiser step. A layer of zeros stays zero. A module with
    ``weight_matrix()`` must be a product of its two-dimensional parameters: each takes its share of the factor.

    Raises:
        ModelError: for a layer it cannot rescale, and for a model with other layers than the first one's.

    >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
    >>> keep = ConstantFrobenius(model)
    >>> before = model[0].weight.norm().item()
    >>> _ = model[0].weight.data.mul_(7.0)
    >>> keep(model)
    >>> abs(model[0].weight.norm().item() - before) < 1e-6
    True
    """

    def __init__(self, model: nn.Module, include_head: bool = True) -> None:
        self.include_head = include_head
        self.norms = {name: _norm(module) for name, module in self._modules(model)}
        for name, module in self._modules(model):
            _factors(name, module)

    def __call__(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, module in self._modules(model):
                if name not in self.norms:
                    raise ModelError(
                        "the model must be the one the norms were taken from", f"layer '{name}'", "make anew"
                    )
                norm, factors = _norm(module), _factors(name, module)
                if norm > 0:
                    for parameter in factors:
                        parameter.mul_((self.norms[name] / norm) ** (1.0 / len(factors)))

    def _modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        found = linear_modules(model)
        return found if self.include_head else found[:-1]


def _norm(module: nn.Module) -> float:
    matrix = weight_matrix(module)
    assert matrix is not None  # linear_modules lists only modules that have one
    return frobenius_norm(matrix)


def _factors(name: str, module: nn.Module) -> list[nn.Parameter]:
    """The parameters whose product the matrix is."""
    own = dict(module.named_parameters())
    if any(parametrize.is_parametrized(part) for part in module.modules()):
        found = []
    elif isinstance(module, HasMatrix):
        found = [parameter for parameter in own.values() if parameter.ndim == 2]
    else:
        found = [own[key] for key in ("weight", "weight_orig") if key in own]  # weight_orig is under a pruning mask
    if not found:
        raise ModelError(
            "constant Frobenius norms need layers that own their weights",
            f"{type(module).__name__} at '{name}'",
            "remove the parametrisation",
        )
    return found
