"""Whether Python reads values that depend on the input while a model runs: branches, counts, NumPy.

What such a model computes for one input is not what it computes for another, so nothing that was found by running it once
holds for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinchpoint.errors import ModelError
from pinchpoint.measure.weights import computed_tensors

_CONVERSIONS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
"""What hands values to Python without an operation of torch."""


@torch.no_grad()
def check_decisions(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> None:
    """Refuse a model whose forward pass reads a number off a value that depends on its input: it may decide by it, and
    whoever follows one pass then sees one side.

    Args:
        model: any module; its own state stays as it is.
        x: some inputs.

    Raises:
        ModelError: naming the module that reads it.

    >>> class Switch(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) if x.mean() > 0.7 else x
    >>> check_decisions(nn.Linear(3, 2), torch.rand(1, 3))
    >>> check_decisions(Switch(2, 2), torch.rand(1, 2))
    Traceback (most recent call last):
        ...
    pinchpoint.errors.ModelError: a forward pass must do the same operations for every input, but got a number read off ...
    """
    copied = copy.deepcopy(model, computed_tensors(model)).eval()
    inputs, running = x.clone(), list[str]()
    for name, module in copied.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(lambda *_: running.pop() and None)
    reads = _Reads(inputs, running)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), _Conversions(reads), reads:
        copied(inputs)
    if reads.where is not None:
        raise ModelError(
            "a forward pass must do the same operations for every input",
            f"a number read off a value that depends on the input, at '{reads.where or 'the top level'}'",
            "take decisions that depend on values, item(), tolist() and NumPy out of it",
        )


class _Reads(TorchDispatchMode):
    """Whether a number is read off a value that depends on a tensor; ``where`` is the module that runs then."""

    def __init__(self, source: Tensor, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.where: str | None = None
        self.depending = {source.untyped_storage().data_ptr()}
        self.kept: list[Tensor] = [source]  # so that no other tensor gets their memory

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        depends = self.depends((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if depends and _gives_values(func, args):
            self.read()
        for value in tree_leaves(result):
            if depends and isinstance(value, Tensor) and value.numel():
                self.depending.add(value.untyped_storage().data_ptr())
                self.kept.append(value)
        return result

    def read(self) -> None:
        """Something has read a number."""
        if self.where is None:
            self.where = self.running[-1] if self.running else ""

    def depends(self, values: object) -> bool:
        """Whether one of these is a tensor that depends on the source."""
        tensors = (
            value for value in tree_leaves(values) if isinstance(value, Tensor) and value.layout == torch.strided
        )
        return any(tensor.untyped_storage().data_ptr() in self.depending for tensor in tensors if tensor.numel())


def _gives_values(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation hands numbers to Python, or a tensor whose size depends on values."""
    if operation is torch.ops.aten.index.Tensor:  # by masks; with numbers its size is that of the numbers
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in operation.tags or torch.Tag.dynamic_output_shape in operation.tags


class _Conversions(TorchFunctionMode):
    """Conversions of tensors that depend on the input; they are no operations."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVERSIONS and self.reads.depends(args):
            self.reads.read()
        return func(*args, **(kwargs or {}))
