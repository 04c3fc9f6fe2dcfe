"""What is done to the weights after each training step."""

from __future__ import annotations

import torch
from torch import nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import HasMatrix, linear_modules, weight_matrix


class ConstantFrobenius:
    """Rescale every linear layer to the Frobenius norm it had when this object was made.

    It separates structure from scale: a penalty can then change a layer's shape of spectrum, not its size (paper,
    motivating experiment). Call it after each optimiser step. A layer of zeros stays zero.

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
        self.norms = {name: float(_norm(module)) for name, module in self._modules(model)}

    def __call__(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, module in self._modules(model):
                if name not in self.norms:
                    raise ModelError(
                        "the model must be the one the norms were taken from", f"layer '{name}'", "make anew"
                    )
                norm = _norm(module)
                factor = torch.where(norm > 0, self.norms[name] / norm, 1.0)
                if isinstance(module, HasMatrix):  # A B: share the factor between the two
                    for parameter in module.parameters():
                        if parameter.ndim == 2:
                            parameter.mul_(factor.sqrt())
                else:
                    module.weight.mul_(factor)  # type: ignore[operator]

    def _modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        found = linear_modules(model)
        return found if self.include_head else found[:-1]


def _norm(module: nn.Module) -> torch.Tensor:
    matrix = weight_matrix(module)
    assert matrix is not None
    norm: torch.Tensor = torch.linalg.matrix_norm(matrix.detach())
    return norm
