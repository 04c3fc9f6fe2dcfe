"""Any nn.Module as an ordered list of linear operators: THE place where weights become matrices.

A fully connected layer is its h x d weight. A convolution is the out x (in/groups * kh * kw) matrix whose rows are the
filters: right for compressibility, not an operator norm. A module that offers ``weight_matrix()`` is seen as that matrix
(low-rank layers do). Parametrised weights and weights under a mask of ``torch.nn.utils.prune`` are seen as they act.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import as_matrix
from pinchpoint.records import Skipped


@runtime_checkable
class HasMatrix(Protocol):
    """A module that acts as one matrix, whatever its parameters look like."""

    def weight_matrix(self) -> Tensor:
        """The h x d matrix the module multiplies with."""
        ...


@dataclass(frozen=True)
class Layer:
    """One linear operator.

    Attributes:
        name: the module's path in the model, as in ``model.named_modules()``.
        kind: ``linear``, ``conv2d`` or the class name of a module with ``weight_matrix()``.
        matrix: h x d, float64, detached.
        bias: length h, float64, or None.
        module: the module itself.
        parameters: how many numbers the layer stores.
    """

    name: str
    kind: str
    matrix: Float[Tensor, "h d"]
    bias: Float[Tensor, "h"] | None
    module: nn.Module
    parameters: int


class Layers(Sequence[Layer]):
    """Layers in the order of the model, and what was skipped."""

    def __init__(self, found: Sequence[Layer], skipped: Sequence[Skipped]) -> None:
        self._found = tuple(found)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        return self._found[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._found)

    @property
    def encoder(self) -> tuple[Layer, ...]:
        """All layers but the last one."""
        return self._found[:-1]

    @property
    def head(self) -> Layer:
        """The last layer: logits = head(representation)."""
        return self._found[-1]


def weight_matrix(module: nn.Module) -> Float[Tensor, "h d"] | None:
    """The module's weights as a matrix that autograd can follow, or None where it is not a linear operator we know.

    >>> weight_matrix(nn.Conv2d(3, 8, kernel_size=5)).shape
    torch.Size([8, 75])
    """
    if isinstance(module, HasMatrix):
        return module.weight_matrix()
    if isinstance(module, nn.Linear | nn.Conv2d):
        return _weight(module).flatten(1)
    return None


def matrix64(module: nn.Module) -> Float[Tensor, "h d"] | None:
    """``weight_matrix`` in float64, detached, and computed in float64 where it is computed (A B, parametrisations)."""
    if isinstance(module, HasMatrix) or parametrize.is_parametrized(module):
        module = float64_copy(module)
    matrix = weight_matrix(module)
    return None if matrix is None else as_matrix(matrix)


def float64_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode. The module itself stays as it is."""
    # torch.nn.utils.prune leaves tensors on the module that autograd made; deepcopy refuses those
    derived = {
        id(value): value.detach()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copied = copy.deepcopy(module, derived).double().eval()
    for part in copied.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                hook(part, None)  # masks are applied before each forward pass; apply them now
    return copied


def linear_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules that ``weight_matrix`` understands, each module once, in the order of registration."""
    return [(name, module) for name, module in _outermost(model) if _is_operator(module)]


def layers(model: nn.Module) -> Layers:
    """The model's linear operators, in the order of registration.

    Raises:
        ModelError: where there is none, or where a weight is NaN, infinite, complex or integer.

    >>> found = layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2)))
    >>> [(layer.name, tuple(layer.matrix.shape)) for layer in found], found.skipped[0].kind
    ([('0', (3, 4)), ('3', (2, 3))], 'LayerNorm')
    """
    if not isinstance(model, nn.Module):
        raise ModelError("a model must be a torch.nn.Module", type(model).__name__, "load the checkpoint first")
    found: list[Layer] = []
    skipped: list[Skipped] = []
    for name, module in _outermost(model):
        try:
            matrix = matrix64(module)
        except ModelError as error:
            raise ModelError(f"layer '{name}': {error.rule}", error.value, error.remedy) from None
        if matrix is None:
            if own := ", ".join(key for key, _ in module.named_parameters(recurse=False)):
                reason = f"its own parameters ({own}) are not seen as linear operators yet"
                skipped.append(Skipped(name=name, kind=type(module).__name__, reason=reason))
            continue
        bias = getattr(module, "bias", None)
        found.append(
            Layer(
                name=name,
                kind={nn.Linear: "linear", nn.Conv2d: "conv2d"}.get(type(module), type(module).__name__),
                matrix=matrix,
                bias=bias.detach().to(matrix.dtype) if isinstance(bias, Tensor) else None,
                module=module,
                parameters=sum(parameter.numel() for parameter in module.parameters()),
            )
        )
    if not found:
        raise ModelError(
            "a model must have at least one linear or convolutional layer", type(model).__name__, "give a network"
        )
    return Layers(found, skipped)


def _weight(module: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight that acts at the next forward pass. A pruned ``module.weight`` is only as new as the last one."""
    original, mask = getattr(module, "weight_orig", None), getattr(module, "weight_mask", None)
    if isinstance(original, Tensor) and isinstance(mask, Tensor):
        return original * mask
    if nn.parameter.is_lazy(module.weight):
        raise ModelError("weights must exist", "a lazy module without weights", "run a batch through the model first")
    return module.weight


def _is_operator(module: nn.Module) -> bool:
    return isinstance(module, HasMatrix | nn.Linear | nn.Conv2d)


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their names, without those inside a module that is already seen as one matrix."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(not prefix or name.startswith(f"{prefix}.") for prefix in inside):
            continue
        yield name, module
        if _is_operator(module):
            inside.append(name)
