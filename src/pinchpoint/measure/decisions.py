"""Whether Python reads values that depend on the input while a model runs: branches, counts, NumPy.

What such a model computes for one input is not what it computes for another, so nothing that was found by running it once
holds for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinchpoint.errors import ModelError

_READERS = {Tensor.numpy: "numpy()", Tensor.tolist: "tolist()", Tensor.__array__: "NumPy"}
"""What hands values to Python without an operation of torch."""


@torch.no_grad()
def check_decisions(model: nn.Module, x: Tensor) -> None:
    """Refuse a model whose forward pass reads values that depend on its input.

    Args:
        model: as it is to be run: in eval mode.
        x: a batch; not changed.

    Raises:
        ModelError: naming what read them.

    >>> class Switch(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) if x.mean() > 0.7 else x
    >>> check_decisions(nn.Linear(2, 2), torch.rand(1, 2))
    >>> check_decisions(Switch(2, 2), torch.rand(1, 2))
    Traceback (most recent call last):
        ...
    pinchpoint.errors.ModelError: a model must do the same operations for every input, but got values that Python reads ...
    """
    inputs = x.clone()
    operations = _Operations(inputs)
    with _Conversions(operations), operations:
        model(inputs)
    if operations.reader:
        raise ModelError(
            "a model must do the same operations for every input",
            f"values that Python reads while it runs ({operations.reader})",
            "take branches and whatever else depends on values out of its forward pass",
        )


class _Operations(TorchDispatchMode):
    """Follows what is computed from the input, by the identity of tensors, which it holds on to."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, Tensor] = {id(inputs): inputs}
        self.reader = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def depends(self, values: Any) -> bool:
        """Whether one of these tensors is computed from the input."""
        return any(isinstance(value, Tensor) and id(value) in self.held for value in tree_leaves(values))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if self.depends((args, kwargs)):
            if _gives_values(func, args):
                self.reader = self.reader or str(func.overloadpacket).replace("aten._local_scalar_dense", "item()")
            for value in tree_leaves(outputs):
                if isinstance(value, Tensor):
                    self.held[id(value)] = value
        return outputs


def _gives_values(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation hands numbers to Python, or a tensor whose size depends on values."""
    if operation is torch.ops.aten.index.Tensor:  # by masks; with numbers its size is that of the numbers
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in operation.tags or torch.Tag.dynamic_output_shape in operation.tags


class _Conversions(TorchFunctionMode):
    """Conversions of tensors that depend on the input."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READERS and self.operations.depends((args, kwargs)):
            self.operations.reader = self.operations.reader or _READERS[func]
        return func(*args, **(kwargs or {}))
