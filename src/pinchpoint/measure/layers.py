"""Any nn.Module as an ordered list of linear operators: THE place where a model becomes matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.attention import attention
from pinchpoint.measure.operators import Groups, Operator, Part, folded, operators
from pinchpoint.measure.shapes import forward_pass
from pinchpoint.measure.skipped import skipped
from pinchpoint.measure.spectrum import as_matrix
from pinchpoint.measure.weights import HasMatrix, float64_copy, is_linear, linear_modules, matrix64, weight_matrix
from pinchpoint.records import Skipped

__all__ = [
    "Groups",
    "HasMatrix",
    "Layer",
    "Layers",
    "float64_copy",
    "layers",
    "linear_modules",
    "matrix64",
    "weight_matrix",
]

_LARGEST_DIAGONAL = 4096
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear operator, y = matrix x + bias.

    Attributes:
        name: the module's path in the model, as in ``model.named_modules()``; with ``.q``, ``.k``, ``.v`` or ``.out`` for
            attention, and the parameter's path for a projection that is a parameter.
        kind: ``linear``, ``conv1d`` ... ``conv3d``, ``conv_transpose1d`` ... ``conv_transpose3d``, ``attention_q``,
            ``attention_k``, ``attention_v``, ``attention_out``, ``projection``, ``embedding`` (rows are tokens),
            ``batchnorm``, or the class name of a module with ``weight_matrix()``.
        shape: of the matrix, (h, d).
        bias: length h, float64, or None.
        module: the module that holds the weights.
        parameters: how many numbers the layer stores that no layer before it does: over all layers and all that was
            skipped they add up to those of the model.
        input_size: spatial input size of a convolution, where a forward pass was made.
        groups: whole heads of attention: equal blocks of rows for q, k and v, of columns for out.
        tied_to: name of an earlier layer that has the same weights.
        diagonal: length h, for a batch norm; its matrix is diag(diagonal).
    """

    name: str
    kind: str
    shape: tuple[int, int]
    bias: Float[Tensor, "h"] | None
    module: nn.Module
    parameters: int
    input_size: tuple[int, ...] | None
    groups: Groups | None
    tied_to: str | None
    diagonal: Float[Tensor, "h"] | None
    _read: Callable[[], Tensor] = field(repr=False)

    @property
    def matrix(self) -> Float[Tensor, "h d"]:
        """h x d, float64, detached. Computed from the module's weights each time, and not kept.

        Raises:
            ModelError: for a large diagonal, which would waste memory.
        """
        if self.diagonal is None:
            return as_matrix(self._read())
        if len(self.diagonal) > _LARGEST_DIAGONAL:
            raise ModelError(
                f"a diagonal becomes a matrix up to length {_LARGEST_DIAGONAL}", len(self.diagonal), "use .diagonal"
            )
        return torch.diag(self.diagonal)


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
        """All layers before the head."""
        return self._found[: self._found.index(self.head)]

    @property
    def head(self) -> Layer:
        """The last layer that is not diagonal: logits = head(representation)."""
        return next(layer for layer in reversed(self._found) if layer.diagonal is None)


def layers(model: nn.Module, *, input_shape: tuple[int, ...] | None = None, fold_batchnorm: bool = False) -> Layers:
    """The model's linear operators.

    Args:
        model: any module.
        input_shape: shape of one input, without the batch. With it, a forward pass of a copy on zeros in eval mode finds
            input sizes, and layers come in the order of execution, those that were not called last; without it, in the
            order of registration.
        fold_batchnorm: multiply a batch norm into the linear layer or convolution whose output it alone consumes, as the
            forward pass shows. Otherwise, and where that is not so, it is a layer of its own.

    Returns:
        ``Layers``. Matrices are read when they are asked for: they are the model's weights at that time.

    Raises:
        ModelError: where there is none; where a weight is NaN, infinite, complex, integer, quantised or not there; where
            the model does not run on that shape.

    >>> found = layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2)))
    >>> [(layer.name, layer.shape) for layer in found], found.skipped[0].kind
    ([('0', (3, 4)), ('3', (2, 3))], 'LayerNorm')
    """
    if not isinstance(model, nn.Module):
        raise ModelError("a model must be a torch.nn.Module", type(model).__name__, "load the checkpoint first")
    if fold_batchnorm and input_shape is None:
        raise ModelError("folding batch norms needs an input shape", "none", "give input_shape, e.g. (3, 224, 224)")
    found = _operators(model)
    shapes: dict[str, tuple[int, int]] = {operator.name: _check(operator) for operator in found}
    if all(operator.diagonal for operator in found):
        raise ModelError(
            "a model must have at least one linear or convolutional layer", type(model).__name__, "give a network"
        )
    sizes: dict[str, tuple[int, ...]] = {}
    if input_shape is not None:
        run = forward_pass(model, input_shape, find_folds=fold_batchnorm)
        found = _fold(found, run.folds)
        found.sort(key=lambda operator: run.order.get(operator.caller, len(run.order)))
        sizes = run.sizes
    owners: dict[tuple[int, int, int], str] = {}
    assembled = []
    for operator in found:
        tied = [owners.get(_key(part)) for part in operator.weights]
        new = {_key(part): part for part in (*operator.weights, *operator.biases) if _key(part) not in owners}
        bias = operator.bias()
        assembled.append(
            Layer(
                name=operator.name,
                kind=operator.kind,
                shape=shapes[operator.name],
                bias=None if bias is None else bias.double(),
                module=operator.module,
                parameters=sum(_share(*part) for part in new.values()),
                input_size=sizes.get(operator.caller),
                groups=operator.groups,
                tied_to=tied[0] if tied and None not in tied else None,
                diagonal=operator.read() if operator.diagonal else None,
                _read=operator.read,
            )
        )
        owners |= dict.fromkeys(new, operator.name)
    return Layers(assembled, skipped(model, {parameter for parameter, *_ in owners}))


def _operators(model: nn.Module) -> list[Operator]:
    """All operators of a model in the order of registration, each module once."""
    for name, module in model.named_modules():
        _check_module(name.split(".parametrizations")[0], module)
    found: list[Operator] = []
    taken: set[int] = set()
    inside: list[str] = []
    for name, module in model.named_modules():
        if id(module) in taken or any(not prefix or name.startswith(f"{prefix}.") for prefix in inside):
            continue
        if is_linear(module) or "parametrizations" in name.split("."):
            inside.append(name)
        try:
            here = attention(name, module)
            taken |= {id(operator.module) for operator in here}
            found += here or operators(name, module)
        except ModelError as error:
            raise _named(name, error) from None
    return found


def _fold(found: list[Operator], folds: dict[str, str]) -> list[Operator]:
    """Batch norms taken into the operators they follow."""
    norms = {operator.caller: operator for operator in found if operator.diagonal}
    after = {maker: norms[norm] for norm, maker in folds.items() if norm in norms}
    return [
        folded(operator, after[operator.caller])
        if operator.caller in after and operator.groups is None and not operator.diagonal
        else operator
        for operator in found
        if operator.caller not in folds or not operator.diagonal
    ]


def _check_module(name: str, module: nn.Module) -> None:
    """Refuse weights that are not there yet or no longer numbers."""
    for _, parameter in module.named_parameters(recurse=False):
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"layer '{name}': weights must exist",
                "a lazy module without weights",
                "run a batch through the model first",
            )
        if parameter.is_meta:
            raise ModelError(
                f"layer '{name}': weights must hold values",
                "a tensor on the meta device",
                "load the checkpoint into the model first",
            )
    if hasattr(module, "_packed_params") and callable(getattr(module, "weight", None)):
        raise ModelError(
            f"layer '{name}': weights must be real floating point numbers",
            f"a quantised {type(module).__name__}",
            "measure the model before it is quantised",
        )


def _check(operator: Operator) -> tuple[int, int]:
    """The matrix's shape, after a look at all its numbers and the bias's, a few rows at a time."""
    try:
        matrix, bias = operator.read(), operator.bias()
        if operator.diagonal:
            as_matrix(matrix[None])
        elif matrix.numel() == 0 or matrix.ndim != 2:
            as_matrix(matrix)
        else:
            for rows in matrix.split(max(1, _CHUNK // matrix.shape[1])):
                as_matrix(rows)
        if bias is not None:
            as_matrix(bias[None])
    except ModelError as error:
        raise _named(operator.name, error) from None
    return matrix.shape[0], matrix.shape[-1]


def _named(name: str, error: ModelError) -> ModelError:
    return ModelError(f"layer '{name}': {error.rule}", error.value, error.remedy)


def _key(part: Part) -> tuple[int, int, int]:
    parameter, index, parts = part
    return id(parameter), index, parts


def _share(parameter: nn.Parameter, index: int, parts: int) -> int:
    """How many numbers of a parameter fall into one of its parts; over all parts they add up."""
    return parameter.numel() * (index + 1) // parts - parameter.numel() * index // parts
