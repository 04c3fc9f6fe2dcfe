"""What goes into and comes out of every linear operator while a model runs: seen by hooks, handed on, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pinchpoint.measure.layers import Layer

Seen = Callable[[Layer, Tensor, Tensor], None]
"""Told of a layer, what went into it and what it made of it, each time it acts."""

_PROJECTED = ("attention_q", "attention_k", "attention_v")
_ATTENTION = (*_PROJECTED, "attention_out")
_UNSEEN = ("embedding", "projection")
"""Kinds that no module's call shows: a table that is looked up, a parameter that a tower multiplies with."""

_ALIKE = 0.01


@contextmanager
def watching(model: nn.Module, found: Sequence[Layer], seen: Seen) -> Iterator[None]:
    """While entered, ``seen`` is told of each of these layers' actions in a forward pass of the model.

    q, k and v are told apart where one module makes them together. Attention that reads the weights of its projections
    without calling them is told what they made of its own inputs; torch's also what went into its output projection.
    """
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    called: set[str] = set()
    by_caller: dict[str, list[Layer]] = {}
    for layer in found:
        if layer.diagonal is None and layer.kind not in _UNSEEN:
            callers = {names[id(layer.module)]: None}
            if layer.kind in _ATTENTION:
                callers[layer.name.rpartition(".")[0]] = None
            for name in callers:
                by_caller.setdefault(name, []).append(layer)
    busy = False

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy:
            return
        called.add(name)
        sources = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        target = output[0] if isinstance(output, tuple) else output
        if not sources or not isinstance(target, Tensor):
            return
        for layer in by_caller[name]:
            if layer.module is module and isinstance(module, nn.Linear) and layer.kind in _PROJECTED:
                seen(layer, sources[0], _part(layer, target))
            elif layer.kind in _PROJECTED:
                if names[id(layer.module)] not in called - {name}:
                    source = sources["qkv".index(layer.kind[-1])] if len(sources) >= 3 else sources[0]
                    seen(layer, source, _product(layer, source))
            elif layer.module is module:
                seen(layer, sources[0], target)
            elif isinstance(module, nn.MultiheadAttention):
                busy = True
                seen(layer, _heads(module, args, kwargs), target)
                busy = False

    handles = [
        modules[name].register_forward_hook(
            lambda module, args, kwargs, output, name=name: hook(name, module, args, kwargs, output), with_kwargs=True
        )
        for name in by_caller
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def samples_first(tensor: Tensor, dim: int, samples: int) -> Tensor | None:
    """The tensor with one row a sample, samples standing along ``dim``; None where they cannot."""
    if tensor.ndim <= dim or tensor.shape[dim] % samples:
        return None
    return tensor.movedim(dim, 0).reshape(samples, -1, *tensor.movedim(dim, 0).shape[1:])


def sample_dimension(tensor: Tensor) -> int | None:
    """Along which dimension samples stand, of a tensor made from three samples, the first and the third of them equal.

    Attention may have tokens first, and windows of one image may stand among the samples; what does not depend on the
    sample has None.

    >>> sample_dimension(torch.tensor([[1.0, 2.0, 1.0], [3.0, 5.0, 3.0]]))
    1
    """
    for dim in range(tensor.ndim):
        if (rows := samples_first(tensor, dim, 3)) is not None:
            same, other = (float(torch.linalg.vector_norm((rows[0] - rows[i]).double())) for i in (2, 1))
            if other > 0 and same <= _ALIKE * other:
                return dim
    return None


def _part(layer: Layer, target: Tensor) -> Tensor:
    """The rows of this projection in what a module made that may hold several, in the order q, k, v."""
    rows = layer.shape[0]
    parts = target.shape[-1] // rows
    place = "qkv".index(layer.kind[-1]) - (3 - parts) if parts > 1 else 0
    return target[..., place * rows : (place + 1) * rows]


def _product(layer: Layer, source: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(source)
    return nn.functional.linear(source, layer.matrix.to(source), bias)


def _heads(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What went into the output projection: what the module gives where that is the identity."""
    weight, bias = module.out_proj.weight, module.out_proj.bias
    eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    identity = {"out_proj.weight": eye} | ({} if bias is None else {"out_proj.bias": torch.zeros_like(bias)})
    result: Tensor = functional_call(module, identity, args, kwargs)[0]
    return result
