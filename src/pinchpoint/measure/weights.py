"""How a module's weights act at the next forward pass in eval mode: parametrised, normalised or masked.

A fully connected layer is its h x d weight. A convolution is the out x (in/groups * kernel) matrix whose rows are the
filters, also where it is transposed: right for compressibility, not an operator norm. A module that offers
``weight_matrix()`` is seen as that matrix (low-rank layers do).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import as_matrix

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}
"""Modules whose ``weight`` is a linear operator, and what they are called."""

_CALLS = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)

_HOOKS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
"""Forward pre-hooks of torch that compute a weight anew before each forward pass."""


@runtime_checkable
class HasMatrix(Protocol):
    """A module that acts as one matrix, whatever its parameters look like."""

    def weight_matrix(self) -> Tensor:
        """The h x d matrix the module multiplies with."""
        ...


@runtime_checkable
class HasDense(Protocol):
    """A module that stands for a plain layer or convolution."""

    def dense(self) -> nn.Module:
        """The plain one, which does the same."""
        ...


def weight_matrix(module: nn.Module) -> Float[Tensor, "h d"] | None:
    """The module's weights as a matrix that autograd can follow, or None where it is no linear layer or convolution.

    >>> weight_matrix(nn.Conv2d(3, 8, kernel_size=5)).shape, weight_matrix(nn.ConvTranspose1d(3, 8, 2)).shape
    (torch.Size([8, 75]), torch.Size([8, 6]))
    """
    if offers_matrix(module):
        return module.weight_matrix()
    return rows_of(module, acting(module, "weight")) if isinstance(module, tuple(KINDS)) else None


def matrix64(module: nn.Module) -> Float[Tensor, "h d"] | None:
    """``weight_matrix`` in float64, detached, and computed in float64 where it is computed (A B, parametrisations)."""
    if isinstance(module, HasMatrix) or is_computed(module):
        module = float64_copy(module)
    matrix = weight_matrix(module)
    return None if matrix is None else as_matrix(matrix)


def linear_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules that ``weight_matrix`` understands, each module once, in the order of registration."""
    return [(name, module) for name, module in outermost(model) if is_linear(module)]


def is_linear(module: nn.Module) -> bool:
    """Whether ``weight_matrix`` understands it."""
    return isinstance(module, tuple(KINDS)) or offers_matrix(module)


def offers_matrix(module: nn.Module) -> TypeGuard[HasMatrix]:
    """``isinstance(module, HasMatrix)`` at a sixth of the price: penalties ask it of every module at every step."""
    return hasattr(module, "weight_matrix")


def is_convolution(module: nn.Module) -> bool:
    """Whether it slides a kernel over its input; its operator then depends on the input's size."""
    return is_linear(module) and hasattr(module, "kernel_size")


def outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their names, without those inside a module that is already seen as one matrix."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(not prefix or name.startswith(f"{prefix}.") for prefix in inside):
            continue
        yield name, module
        if is_linear(module):
            inside.append(name)


def rows_of(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight laid out as a matrix with one row an output feature or channel."""
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:  # stored as in x out/groups x kernel
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def acting(module: nn.Module, name: str) -> Tensor:
    """A weight or bias as it acts at the next forward pass; autograd can follow it. Reads only, but for the power
    iteration that a parametrisation by ``spectral_norm`` does whenever it is looked at in training mode.

    A weight that a pre-hook computes (pruning masks, the older weight_norm and spectral_norm) is only as new as the last
    forward pass in ``module.weight``; here it is computed from what the optimiser changes.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            computed: Tensor = hook.compute_weight(module)
            return computed
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False)
    original, mask = getattr(module, f"{name}_orig", None), getattr(module, f"{name}_mask", None)
    if isinstance(original, Tensor) and isinstance(mask, Tensor):
        return original * mask
    value: Tensor = getattr(module, name)
    if nn.parameter.is_lazy(value):
        raise ModelError("weights must exist", "a lazy module without weights", "run a batch through the model first")
    if value.is_complex():
        raise ModelError(
            "weights must be real floating point numbers", f"{value.dtype}", "convert the model, e.g. model.float()"
        )
    return value


def acting64(module: nn.Module, name: str, *, called: bool = True) -> Tensor | None:
    """``acting`` in eval mode, detached, and in float64 where it is computed; None where there is none.

    ``called=False`` is for a module whose weight another module reads without calling it: its hooks never run. A
    subclass with a forward pass of its own (timm's weight standardisation) is run, to see what it multiplies with.
    """
    if called and _has_own_forward(module) and (caught := _caught(module)) is not None:
        return caught[name]
    if is_computed(module) and (called or parametrize.is_parametrized(module)):
        module = float64_copy(module)  # before anything is looked at: that may change what is parametrised
    if getattr(module, name, None) is None:
        return None
    return (acting(module, name) if called else getattr(module, name)).detach()


def is_computed(module: nn.Module) -> bool:
    """Whether some weight of it is computed from others."""
    hooks = module._forward_pre_hooks.values()
    return parametrize.is_parametrized(module) or any(isinstance(hook, _HOOKS) for hook in hooks)


def _has_own_forward(module: nn.Module) -> bool:
    return any(isinstance(module, kind) and type(module).forward is not kind.forward for kind in KINDS)


def _caught(module: nn.Module) -> dict[str, Tensor | None] | None:
    """Weight and bias that the module's forward pass hands to torch; None where it does so not once, or otherwise."""
    copied = float64_copy(module)
    if isinstance(copied, nn.modules.conv._ConvNd):
        kernel = zip(copied.kernel_size, copied.dilation, strict=True)
        shape = (1, copied.in_channels, *(size * dilation for size, dilation in kernel))
    else:
        shape = (1, int(copied.in_features))  # type: ignore[arg-type]
    original = acting(copied, "weight")
    with _Catch() as catch, torch.no_grad():
        try:
            copied(torch.zeros(shape, dtype=torch.float64, device=original.device))
        except Exception:  # a class we do not know: its stored weight is all there is to see
            return None
    used = [call for call in catch.calls if call["weight"] is not None and call["weight"].shape == original.shape]
    return used[0] if len(used) == len(catch.calls) == 1 else None


class _Catch(TorchFunctionMode):
    """Keeps the weights and biases of linear layers and convolutions while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Tensor | None]] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CALLS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            found = {name: given.get(name) for name in ("weight", "bias")}
            self.calls.append({name: None if value is None else value.detach() for name, value in found.items()})
        return func(*args, **(kwargs or {}))


def stored(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters from which a weight or bias is computed; usually the one of that name."""
    if parametrize.is_parametrized(module, name):
        return list(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    own = dict(module.named_parameters(recurse=False))
    return [own[key] for key in (name, f"{name}_orig", f"{name}_g", f"{name}_v") if key in own]


def float64_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode. The module itself stays as it is."""
    copied = copy.deepcopy(module, computed_tensors(module)).double().eval()
    for part in copied.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, _HOOKS):
                hook(part, None)  # applied before each forward pass; apply them now
    return copied


def computed_tensors(module: nn.Module) -> dict[int, Tensor]:
    """A memo for ``copy.deepcopy``, which refuses tensors that autograd made; pruning and the like leave some behind."""
    return {
        id(value): value.detach()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
