"""One training over several processes: each takes its share of every batch, and their gradients are averaged.

Lightning Fabric starts the processes, on one machine or many (it understands torchrun and SLURM), and wraps the model; this
file says what of it the training loop uses. Alone, the loop needs none of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pinchpoint.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.wrappers import _FabricModule


@runtime_checkable
class Engine(Protocol):
    """What the training loop asks of whoever runs it."""

    rank: int
    processes: int
    device: torch.device

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model to call forward passes of, and the optimiser to step."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, averaged over the processes, unless ``accumulating`` is entered."""

    def accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Entered around a forward and backward pass; with ``more`` to come, gradients need not be averaged yet."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, stacked."""

    def wait(self) -> None:
        """Until all processes are here."""


class Alone:
    """This process and no other."""

    rank, processes = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both as they are."""
        return model, optimizer

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""
        loss.backward()

    def accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Nothing to hold back."""
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The value itself, stacked."""
        return value[None]

    def wait(self) -> None:
        """Nobody to wait for."""


class Together:
    """Several processes under Lightning Fabric. Make it, then build the model and call ``train(..., engine=it)``.

    Args:
        devices: processes on each machine.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        nodes: machines.

    Raises:
        ConfigError: where Lightning Fabric is not installed, or the processes cannot be started.
    """

    def __init__(self, devices: int, accelerator: str = "auto", nodes: int = 1) -> None:
        if importlib.util.find_spec("lightning_fabric") is None:
            raise ConfigError(
                "training in several processes needs Lightning Fabric",
                "an installation without it",
                "pip install 'pinchpoint[parallel]'",
            )
        from lightning_fabric import Fabric

        try:
            self._fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy="ddp")
            self._fabric.launch()
        except (RuntimeError, ValueError) as error:  # Lightning's misconfigurations are ValueErrors
            seen = f"{devices} x {nodes} on {accelerator} ({str(error).splitlines()[0]})"
            raise ConfigError("the processes must be there to be started", seen, "ask for fewer devices") from None
        self.rank, self.processes = int(self._fabric.global_rank), int(self._fabric.world_size)
        self.device: torch.device = self._fabric.device

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both wrapped; every process starts from the first one's weights."""
        wrapped, stepped = self._fabric.setup(model, optimizer)
        return wrapped, stepped

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, averaged over the processes."""
        self._fabric.backward(loss)

    def accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Without averaging while there is more to come."""
        return self._fabric.no_backward_sync(cast("_FabricModule", model), enabled=more)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return cast(Tensor, self._fabric.all_reduce(value, reduce_op="sum"))

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, stacked."""
        return cast(Tensor, self._fabric.all_gather(value)).reshape(self.processes, *value.shape)

    def wait(self) -> None:
        """Until all processes are here."""
        self._fabric.barrier()
