"""What a network costs: its parameters, the floating point operations of one input, and the time of a batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pinchpoint.measure.forward import own_dtype
from pinchpoint.measure.shapes import forward_pass


def parameter_count(model: nn.Module) -> int:
    """How many numbers the model stores; shared ones once.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def flop_count(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating point operations of matrix products, convolutions and attention for one input; a multiplication and an
    addition are two.

    >>> flop_count(nn.Linear(3, 2), (3,))
    12
    """
    inputs = _inputs(model, (1, *input_shape))
    with torch.no_grad(), _Count() as counter:
        model(inputs)
    return int(counter.total)


class _Count(TorchDispatchMode):
    """Adds up what torch's own formulas say. Its ``FlopCounterMode`` would, but imports the compiler for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=output))
        return output


def latencies(models: Sequence[nn.Module], input_shape: tuple[int, ...], batch: int, repeats: int = 9) -> list[float]:
    """Median seconds of a forward pass of each model. They take turns, so that a busy machine slows all of them.

    Args:
        models: in the mode they are to be timed in; each is run twice before anything is measured.
        input_shape: of one input, without the batch.
        batch: how many inputs at once.
        repeats: forward passes timed.
    """
    seconds: list[list[float]] = [[] for _ in models]
    inputs = [_inputs(model, (batch, *input_shape)) for model in models]
    with torch.inference_mode():
        for turn in range(repeats + 2):
            for model, own, given in zip(models, seconds, inputs, strict=True):
                x = given.clone()
                _wait(x.device)
                start = time.perf_counter()
                model(x)
                _wait(x.device)
                if turn >= 2:
                    own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _inputs(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """A batch that the model takes."""
    device = next(model.parameters()).device
    if forward_pass(model, shape[1:]).tokens:
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.full(shape, 0.5, dtype=own_dtype(model), device=device)
