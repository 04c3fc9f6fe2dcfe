"""What one module is as linear operators, before anything is computed: names, kinds, and how to read each matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.measure.spectrum import as_matrix
from pinchpoint.measure.weights import KINDS, HasMatrix, acting64, float64_copy, rows_of, stored

Part = tuple[nn.Parameter, int, int]
"""A parameter, which of its equal parts (from 0), and how many parts there are."""

_PROJECTIONS = ("proj", "text_projection")
"""Parameters that open_clip's towers multiply from the right, x @ proj: the operator is the transposed matrix."""


@dataclass(frozen=True)
class Groups:
    """A matrix cut into ``count`` equal blocks of neighbouring rows or columns: the heads of an attention layer.

    >>> [tuple(block.shape) for block in Groups(2, "rows").split(torch.zeros(6, 4))]
    [(3, 4), (3, 4)]
    """

    count: int
    axis: Literal["rows", "columns"]

    def split(self, matrix: Float[Tensor, "h d"]) -> tuple[Float[Tensor, "_ _"], ...]:
        """The blocks, in order, without copying."""
        return matrix.chunk(self.count, dim=0 if self.axis == "rows" else 1)


@dataclass(frozen=True)
class Operator:
    """One linear operator of a module.

    Attributes:
        name: of the operator; that of the module, or longer where a module is several operators.
        kind: see ``layers``.
        module: holds the weights.
        caller: name of the module that is called to apply it.
        read: the matrix as it acts now, detached; h numbers where it is a diagonal matrix.
        bias: the bias, or None.
        weights: what is stored for the matrix.
        biases: what is stored for the bias.
        groups: heads.
        diagonal: whether ``read`` gives a diagonal.
    """

    name: str
    kind: str
    module: nn.Module
    caller: str
    read: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]
    weights: tuple[Part, ...]
    biases: tuple[Part, ...] = ()
    groups: Groups | None = None
    diagonal: bool = False


def whole(parameters: Sequence[nn.Parameter]) -> tuple[Part, ...]:
    """Parameters that are not divided."""
    return tuple((parameter, 0, 1) for parameter in parameters)


def operators(name: str, module: nn.Module) -> list[Operator]:
    """A single module as operators: one, none, or one for each parameter that is a projection."""
    if isinstance(module, HasMatrix):
        return [_has_matrix(name, module)]
    for kind, label in KINDS.items():
        if isinstance(module, kind):
            return [linear(name, label, module, name)]
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        table = stored(module, "weight")
        return [Operator(name, "embedding", module, name, lambda: _table(module), lambda: None, whole(table))]
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
        return [_batchnorm(name, module)]
    return [
        Operator(
            f"{name}.{key}" if name else key,
            "projection",
            module,
            name,
            lambda key=key: getattr(module, key).detach().T,  # type: ignore[misc]
            lambda: None,
            whole([parameter]),
        )
        for key, parameter in module.named_parameters(recurse=False)
        if key in _PROJECTIONS and parameter.ndim == 2
    ]


def linear(
    name: str, kind: str, module: nn.Module, caller: str, groups: Groups | None = None, called: bool = True
) -> Operator:
    """A fully connected layer or a convolution. ``called`` as in ``acting64``."""

    def read() -> Tensor:
        weight = acting64(module, "weight", called=called)
        assert weight is not None
        return rows_of(module, weight)

    return Operator(
        name,
        kind,
        module,
        caller,
        read,
        lambda: acting64(module, "bias", called=called),
        whole(stored(module, "weight")),
        whole(stored(module, "bias")),
        groups,
    )


def folded(operator: Operator, norm: Operator) -> Operator:
    """diag(scale) (W x + b) + shift: an operator with the batch norm after it."""

    def read() -> Tensor:
        return norm.read()[:, None] * as_matrix(operator.read())

    def bias() -> Tensor | None:
        before, shift = operator.bias(), norm.bias()
        assert shift is not None
        return shift if before is None else norm.read() * before.double() + shift

    return Operator(
        operator.name,
        operator.kind,
        operator.module,
        operator.caller,
        read,
        bias,
        operator.weights,
        (*operator.biases, *norm.weights, *norm.biases),
    )


def _has_matrix(name: str, module: HasMatrix) -> Operator:
    assert isinstance(module, nn.Module)

    def read() -> Tensor:
        copied = float64_copy(module)
        assert isinstance(copied, HasMatrix)
        return copied.weight_matrix().detach()

    def bias() -> Tensor | None:
        found = getattr(float64_copy(module), "bias", None)
        return found.detach() if isinstance(found, Tensor) else None

    biases = {id(parameter) for parameter in stored(module, "bias")}
    return Operator(
        name,
        type(module).__name__,
        module,
        name,
        read,
        bias,
        whole([parameter for parameter in module.parameters() if id(parameter) not in biases]),
        whole([parameter for parameter in module.parameters() if id(parameter) in biases]),
    )


def _table(module: nn.Embedding | nn.EmbeddingBag) -> Tensor:
    """The rows as they are looked up: with ``max_norm``, longer ones are first shortened (torch's renorm)."""
    table = acting64(module, "weight")
    assert table is not None
    if module.max_norm is None:
        return table
    table = table.double()
    length = torch.linalg.vector_norm(table, module.norm_type, dim=1, keepdim=True)
    return table * torch.where(length > module.max_norm, module.max_norm / (length + 1e-7), 1.0)


def _batchnorm(name: str, module: nn.modules.batchnorm._BatchNorm) -> Operator:
    """gamma / sqrt(var + eps), and beta - mean * gamma / sqrt(var + eps)."""

    def scale() -> Tensor:
        gamma, variance = acting64(module, "weight"), module.running_var
        assert variance is not None
        root = (variance.double() + module.eps).sqrt()
        return 1.0 / root if gamma is None else gamma.double() / root

    def shift() -> Tensor:
        beta, mean = acting64(module, "bias"), module.running_mean
        assert mean is not None
        moved = -mean.double() * scale()
        return moved if beta is None else beta.double() + moved

    gamma, beta = whole(stored(module, "weight")), whole(stored(module, "bias"))
    return Operator(name, "batchnorm", module, name, scale, shift, gamma, beta, diagonal=True)
