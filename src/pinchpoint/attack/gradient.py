"""What every gradient attack does to a model: check its answers once, then ask for values and input gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.objectives import Objective
from pinchpoint.attack.samples import check_logits
from pinchpoint.errors import DataError, ModelError, PinchpointError
from pinchpoint.utils.model_output import answer, called, check_module, said


def checked_logits(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]
) -> Float[Tensor, "batch classes"]:
    """The clean logits of samples as ``check_samples`` gives them.

    Raises:
        DataError: for labels out of range.
        ModelError: for a model that does not return a finite matrix of logits.
    """
    with torch.no_grad():
        logits = answer(model, x)
    check_logits(logits, y, len(x))
    return logits


_NUMBERS = 2**22
"""Input numbers in one pass: more than a thousand CIFAR images, 27 of ImageNet's."""


def at_once(x: Tensor, most: int) -> int:
    """Inputs in one pass: as many as asked for, but no more than large images leave memory for.

    Raises:
        DataError: for fewer than one.

    >>> at_once(torch.zeros(1, 3, 32, 32), 1024), at_once(torch.zeros(1, 3, 224, 224), 1024)
    (1024, 27)
    """
    if most < 1:
        raise DataError("batch_size must be one or more", most, "leave it out for 1024")
    return min(most, max(1, _NUMBERS // max(1, x[0].numel())))


def graph_bytes(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> int:
    """Bytes that one sample's forward pass keeps for its gradient, weights left out."""
    kept: dict[int, int] = {}
    weights = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:  # a sparse one has no storage of its own
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        try:
            called(model, x[:1].detach().clone().requires_grad_(True))
        except ModelError:  # statistics of a batch need two samples: each keeps half
            if len(x) < 2:
                raise
            kept.clear()
            called(model, x[:2].detach().clone().requires_grad_(True))
            return sum(kept.values()) // 2
    return sum(kept.values())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module; each module's own mode is put back.

    Raises:
        ModelError: for what is no module.
    """
    check_module(model)
    before = [(module, module.training) for module in model.modules()]
    with suppress(NotImplementedError):  # a program that torch.export made keeps the mode it was exported in
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def attacking(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Eval mode, so that no running statistic moves; what the model itself draws follows the seed. Both are put back."""
    with eval_mode(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fooled(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Samples whose largest logit is not the label's."""
    return logits.argmax(1) != y


def value_and_gradient(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective per sample and its gradient in x, both in x's dtype, and the logits.

    Only the path to x is differentiated: no parameter gets a gradient, and the training mode stays as it is. Entries of
    the gradient that are NaN count as zero, so a single undefined derivative does not end an attack.

    Raises:
        ModelError: where the objective does not depend on x in a way that autograd can follow.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = answer(model, x)
        values = objective_of(objective, logits, y)
        return values.detach().to(x.dtype), input_gradient(model, x, values), logits.detach()


def objective_of(
    objective: Objective, logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """The objective's value for each sample.

    Raises:
        ModelError: where it has none, as of a model that returns fewer logits for some batches than for others.
    """
    try:
        values = objective(logits, y)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            "an objective must give a value for each sample",
            f"{said(error)}, of logits of shape {tuple(logits.shape)}",
            "let the model return as many logits for every batch",
        ) from error
    return values


def input_gradient(model: nn.Module, x: Tensor, values: Float[Tensor, "batch"], *, again: bool = False) -> Tensor:
    """Gradient in x of values the model computed from it; ``again``: there are more to come from the same pass.

    Raises:
        ModelError: where the values do not depend on x in a way that autograd can follow.
    """
    gradient = None
    if values.requires_grad:
        try:
            gradient = torch.autograd.grad(values.sum(), x, retain_graph=again, allow_unused=True)[0]
        except (torch.OutOfMemoryError, MemoryError, PinchpointError):
            raise
        except (
            Exception
        ) as error:  # an operation without a derivative, one in place that autograd needs, anybody's backward
            raise ModelError(
                "a gradient attack needs a model that is differentiable in its input",
                f"a backward pass that fails: {said(error)}",
                "mend the derivative, or use an attack that needs none (square)",
            ) from error
    if gradient is None:
        raise ModelError(
            "a gradient attack needs a model that is differentiable in its input",
            f"no gradient from {type(model).__name__}",
            "use square, which needs no gradient, or take detach(), torch.no_grad() and thresholds out of its forward pass",
        )
    return gradient.nan_to_num()


def value(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Objective per sample, in x's dtype, and logits, without a gradient."""
    with torch.no_grad():
        logits = answer(model, x)
        return objective_of(objective, logits, y).to(x.dtype), logits
