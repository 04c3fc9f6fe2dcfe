"""What one forward pass tells: input sizes of convolutions, order of execution, and which batch norms can be folded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinchpoint.errors import ModelError
from pinchpoint.measure.weights import computed_tensors, is_convolution, is_linear

Norm = nn.modules.batchnorm._BatchNorm


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        order: names of the modules that were called, each once, in the order in which they returned.
        sizes: see ``input_sizes``.
        folds: for each batch norm that alone consumes what a linear layer or convolution returned, that layer's name; batch
            norms without running statistics are no scaling of rows.
        tokens: whether the model takes integers, for an embedding.
    """

    order: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)
    tokens: bool = False


def input_sizes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Spatial input size of each convolution; the largest, where it is called at several.

    With zero padding the operator at a size contains those at smaller ones, and its norm is at least theirs. With other
    padding that is not so, and a convolution called at several sizes is left out.

    Args:
        model: is not changed; a copy that shares its parameters sees zeros, in eval mode.
        input_shape: shape of one input, without the batch.

    Raises:
        ModelError: where the model does not run on that shape, naming the layer.

    >>> input_sizes(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3)), (3, 32, 30))
    {'0': (32, 30), '1': (15, 14)}
    """
    return forward_pass(model, input_shape).sizes


def forward_pass(model: nn.Module, input_shape: tuple[int, ...], *, find_folds: bool = False) -> Pass:
    """Run a copy of the model on zeros (on token 0, where an embedding comes first) and watch.

    Raises:
        ModelError: where the model does not run on that shape, naming the layer.
    """
    if not _is_shape(input_shape):
        raise ModelError(
            "an input shape must be made of positive integers", input_shape, "write it without the batch: (3, 32, 32)"
        )
    copied = _runnable(model)
    first = next((p for p in copied.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = torch.zeros((1, *input_shape), dtype=first.dtype, device=first.device)
    return _watch(copied, zeros, find_folds)


def _is_shape(shape: object) -> bool:
    sizes = shape if isinstance(shape, tuple | list) else ()
    return len(sizes) > 0 and all(isinstance(size, int) and size > 0 for size in sizes)


def _runnable(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares its parameters with the model, so that a large model is not stored twice."""
    shared: dict[int, Tensor] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, computed_tensors(model) | shared).eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
        copied = copy.deepcopy(copied).float()  # not every operation knows half precision
    return copied


def _watch(model: nn.Module, inputs: Tensor, find_folds: bool) -> Pass:
    """One forward pass with hooks on every module."""
    seen, running = Pass(tokens=not inputs.is_floating_point()), list[str]()
    uses, modules, handles = _Uses(running), dict(model.named_modules()), []
    sizes: dict[str, set[tuple[int, ...]]] = {}

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(name)
        source = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if source is None:
            return
        kernel = getattr(module, "kernel_size", ())
        if is_convolution(module) and isinstance(kernel, tuple):
            sizes.setdefault(name, set()).add(tuple(source.shape[-len(kernel) :]))
        if isinstance(module, Norm) and module.running_mean is not None:
            uses.normalised(name, source)

    def after(name: str, module: nn.Module, output: Any) -> None:
        running.pop()
        seen.order.setdefault(name, len(seen.order))
        if find_folds and is_linear(module) and isinstance(output, Tensor):
            uses.made(name, output, channels_second=is_convolution(module) or output.ndim == 2)

    for name, module in modules.items():
        handles += [
            module.register_forward_pre_hook(_named(before, name), with_kwargs=True),
            module.register_forward_hook(lambda module, args, output, name=name: after(name, module, output)),
        ]
    try:
        with torch.no_grad():
            if find_folds:
                with uses:
                    output = model(inputs)
                seen.folds = uses.folds(tree_leaves(output))
            else:
                model(inputs)
    except Exception as error:
        failed, why = running[-1] if running else "", error
    else:
        seen.sizes = {
            name: tuple(max(size) for size in zip(*found, strict=True))
            for name, found in sizes.items()
            if len(found) == 1 or getattr(modules[name], "padding_mode", "") == "zeros"
        }
        return seen
    finally:
        for handle in handles:
            handle.remove()
    if inputs.is_floating_point() and isinstance(modules[failed], nn.Embedding | nn.EmbeddingBag):
        return _watch(model, inputs.long(), find_folds)
    where = f"at layer '{failed}'" if failed else "in the model"
    raise ModelError(
        f"the model must run on an input of shape {tuple(inputs.shape[1:])}",
        f"{type(why).__name__} {where}: {why}",
        "give the shape of one input, without the batch",
    )


def _named(hook: Callable[..., None], name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    return lambda module, args, kwargs: hook(name, module, args, kwargs)


class _Uses(TorchDispatchMode):
    """Which modules consume what linear layers return, by the identity of tensors.

    Holds on to those outputs, so that no other tensor gets their ``id`` while it watches.
    """

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.makers: dict[int, list[str]] = {}
        self.users: dict[int, set[str]] = {}
        self.norms: dict[str, list[int]] = {}
        self.kept: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def made(self, name: str, output: Tensor, *, channels_second: bool) -> None:
        """A layer has returned this. Only where channels are the second dimension does a batch norm scale rows."""
        if channels_second:
            self.kept.append(output)
            self.makers.setdefault(id(output), []).append(name)

    def normalised(self, name: str, source: Tensor) -> None:
        """A batch norm is called with this."""
        self.norms.setdefault(name, []).append(id(source))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.makers:
                self.users.setdefault(id(value), set()).add(self.running[-1])
        return func(*args, **(kwargs or {}))

    def folds(self, outputs: list[Any]) -> dict[str, str]:
        """Batch norms called once, on the output of a layer called once, that nothing else reads."""
        returned = {id(value) for value in outputs}
        calls = [name for names in self.makers.values() for name in names]
        found = {}
        for norm, (source, *more) in self.norms.items():
            makers = self.makers.get(source, [])
            alone = self.users.get(source) == {norm} and source not in returned
            if alone and not more and len(makers) == 1 and calls.count(makers[0]) == 1:
                found[norm] = makers[0]
        return found
