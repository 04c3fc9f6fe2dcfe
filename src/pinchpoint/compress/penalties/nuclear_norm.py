"""The nuclear norm as a penalty, exactly or at about the price of a matrix product a step.

What was tried for the fast mode. Price: a training step over the plain one, FCN 3072-2000-2000-2000-10, batches of
100, AdamW, processor time of one thread past the start; with ~ from timings of its parts. End of training: MNIST
(12000 images), 784-200-200-10, AdamW 1e-3, cosine, 20 epochs, strength 5e-3 / 1e-3, seed 0, against exact mode:
validation loss, and singular values ||difference||_2 / ||exact||_2. Rounding alone (weights moved by 1e-6, 6 epochs)
gives 0.2 % / 0.3 % and 0.5 % / 0.3 %.

    svdvals with autograd                          72     the reference
    factor kept for 50 steps                       ~1.6   loss -6 % / -4 % (6 epochs)    spectrum 7 % / 7 %
    factor kept for 12 steps                       ~2.8   loss -0.5 % / -0.8 % (6)       spectrum 2.5 % / 1.7 %
    kept for 50, less at first                     ~1.6   loss -5 % / -2 %               spectrum 7 % / 4 %
    variational W'S^-1 W, S every 100 steps (6)    ~1.7   loss +13 % / +16 %             spectrum 127 % / 44 %
    block Jacobi on a kept basis every 14 steps    ~2     loss +14 % / -3 % (6)          spectrum 11 % / 8 %
    chosen: kept for 60, less at first; collapsed   1.6   loss -0.4 % / -1.2 %           spectrum 0.9 % / 1.3 %
      tails pushed along themselves                       (three seeds: at most 1.5 %)   (at most 1.8 %)

At the start of training about forty refreshes a layer come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.compress.penalties.base import LayerPenalty, Touched
from pinchpoint.compress.penalties.polar import SMALL, PolarMemory, polar_factor
from pinchpoint.errors import CheckpointError, ConfigError

Mode = Literal["fast", "exact"]


@dataclass(frozen=True)
class NuclearNorm(LayerPenalty):
    """sum of singular values: few dominant directions. The gradient is the polar factor U V'.

    Convolutions are taken as their out x (in * kernel) matrices.

    Args:
        strength: zero or more.
        include_head: also penalise the last layer.
        layers: patterns of layer names.
        mode: ``exact`` takes an SVD at every call, from which value and gradient come, so that it is never differentiated;
            singular values below float rounding contribute no direction. ``fast`` does the same for sides up to 128, and
            follows the polar factor of larger layers (``polar.PolarMemory``): it remembers, so use one penalty for one
            model in one training run. Its value is <P, W> with the followed factor P: a lower bound of the nuclear norm as
            long as all singular values are large, an estimate once most have collapsed. Where gradients are switched off
            it looks and does not step.
        refresh: most steps between two exact factors in ``fast`` mode.

    Raises:
        ConfigError: for an unknown mode or a refresh below 1.

    >>> round(NuclearNorm(1.0).term(torch.diag(torch.tensor([3.0, 4.0]))).item(), 5)
    7.0
    """

    mode: Mode = "fast"
    refresh: int = 60
    memory: dict[str, PolarMemory] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in get_args(Mode):
            raise ConfigError(f"a nuclear norm's mode is {' or '.join(get_args(Mode))}", self.mode, "use fast")
        if self.refresh < 1:
            raise ConfigError("a nuclear norm is refreshed after one step or more", self.refresh, "use 60")

    def term(self, matrix: Float[Tensor, "h d"]) -> Float[Tensor, ""]:
        if not bool(torch.isfinite(matrix).all()):
            return matrix.sum() * torch.nan  # as other penalties have it: the loss then says that training has diverged
        value: Tensor = _Nuclear.apply(matrix)  # type: ignore[no-untyped-call]
        return value

    def layer_term(self, layer: Touched) -> Float[Tensor, ""]:
        matrix = layer.matrix
        if self.mode == "exact" or min(matrix.shape) <= SMALL:
            return self.term(matrix)
        tall = matrix.shape[0] > matrix.shape[1]
        now = matrix.detach().to(torch.float64 if matrix.dtype == torch.float64 else torch.float32)
        wide = now.mT if tall else now
        memory = self.memory.setdefault(layer.name, PolarMemory())
        _check_fit(layer.name, memory, wide)
        if torch.is_grad_enabled():
            factor = memory.factor(wide, self.refresh)
        else:
            factor = polar_factor(wide) if memory.polar is None else memory.polar
        value: Tensor = torch.dot((factor.mT if tall else factor).to(matrix.dtype).reshape(-1), matrix.reshape(-1))
        return value

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value for name, memory in self.memory.items() for key, value in memory.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            parts.setdefault(name, {})[kind] = value
        found = {name: PolarMemory.from_state(part) for name, part in parts.items()}
        self.memory.clear()
        self.memory.update(found)


def _check_fit(name: str, memory: PolarMemory, wide: Tensor) -> None:
    if memory.reference is None:
        return
    if memory.reference.shape != wide.shape:
        raise CheckpointError(
            "a fast nuclear norm follows one model's layers",
            f"shape {tuple(wide.shape)} for '{name}' after {tuple(memory.reference.shape)}",
            "make a new NuclearNorm for each model",
        )
    if memory.reference.device != wide.device or memory.reference.dtype != wide.dtype:
        for key in ("polar", "basis", "reference"):  # a resumed run, or a model that moved
            tensor = getattr(memory, key)
            setattr(memory, key, None if tensor is None else tensor.to(wide))


class _Nuclear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor) -> Tensor:
        wide = matrix if matrix.dtype == torch.float64 else matrix.float()  # there is no SVD in half precision
        u, sigma, vh = torch.linalg.svd(wide, full_matrices=False)
        seen = sigma > sigma.amax() * max(matrix.shape) * torch.finfo(matrix.dtype).eps
        ctx.save_for_backward((u[:, seen] @ vh[seen]).to(matrix.dtype))
        total: Tensor = sigma.sum().to(matrix.dtype)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (polar,) = ctx.saved_tensors  # type: ignore[attr-defined]
        result: Tensor = grad_outputs[0] * polar
        return result
