"""What every gradient attack does to a model: check the input once, then ask for values and input gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.objectives import Objective
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import DataError, ModelError, ThreatError


def check_inputs(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], threat: Threat
) -> Float[Tensor, "batch classes"]:
    """Refuse what no attack can take; return the clean logits.

    Raises:
        DataError: for integer images, values outside the box or not finite, labels out of range or of another length.
        ModelError: for a model that does not return a finite matrix of logits.
    """
    check_points(x, threat)
    with torch.no_grad():
        logits: Tensor = answer(model, x)
    check_logits(logits, y, len(x))
    return logits


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output; where torch refuses the input (dtype, channels, size), one sentence that says so."""
    try:
        logits: Tensor = model(x)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError | ModelError):
            raise
        raise ModelError(
            "a model must take the inputs it is given",
            f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}: {str(error).splitlines()[0]}",
            "match dtype, channels and size to what the model was built for",
        ) from error
    return logits


def check_points(x: Tensor, threat: Threat) -> None:
    """Refuse inputs that are no floating point batch, not finite or outside the box (its edges taken in x's dtype)."""
    if not isinstance(x, Tensor):
        raise DataError("inputs must be torch tensors", type(x).__name__, "convert them with torch.as_tensor")
    if not x.dtype.is_floating_point or x.ndim < 2 or x.shape[0] == 0:
        raise DataError(
            "inputs must be a non-empty batch of floating point tensors",
            f"{x.dtype} of shape {tuple(x.shape)}",
            "convert images to float and scale them to the box",
        )
    if threat.eps > (largest := threat.diagonal(x[0].numel())):
        raise ThreatError(
            f"eps must not exceed the box, which is {largest:.4g} wide in {threat.norm}",
            threat.eps,
            "give the budget in input units, for example 8/255",
        )
    low, high = torch.tensor(threat.box or (-torch.inf, torch.inf), dtype=x.dtype).tolist()
    if not bool(torch.isfinite(x).all()) or float(x.min()) < low or float(x.max()) > high:
        raise DataError(
            f"inputs must be finite and lie in the box [{low:g}, {high:g}]",
            f"values {float(x.min()):.6g} ... {float(x.max()):.6g}",
            "put normalisation into the model and keep inputs in the box",
        )


def check_logits(logits: object, y: Tensor, samples: int) -> None:
    """Refuse what is no finite matrix of logits, one row a sample, and labels that do not fit it."""
    if not isinstance(logits, Tensor):
        seen = type(logits).__name__
    elif logits.ndim != 2 or logits.shape[0] != samples:
        seen = f"shape {tuple(logits.shape)}"
    else:
        seen = "" if bool(torch.isfinite(logits).all()) else "NaN or inf"
    if seen or not isinstance(logits, Tensor):
        raise ModelError(
            "a model must return finite logits of shape (batch, classes)", seen, "check the model's output"
        )
    if y.shape != (samples,) or y.dtype != torch.long or int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise DataError(
            f"labels must be {samples} integers (torch.long) in 0 ... {logits.shape[1] - 1}",
            f"{y.dtype} of shape {tuple(y.shape)}, {y.min().item() if y.numel() else '-'} ... "
            f"{y.max().item() if y.numel() else '-'}",
            "check the data set against the model's head",
        )


_NUMBERS = 2**22
"""Input numbers in one pass: more than a thousand CIFAR images, 27 of ImageNet's."""


def at_once(x: Tensor, most: int) -> int:
    """Inputs in one pass: as many as asked for, but no more than large images leave memory for.

    >>> at_once(torch.zeros(1, 3, 32, 32), 1024), at_once(torch.zeros(1, 3, 224, 224), 1024)
    (1024, 27)
    """
    return min(most, max(1, _NUMBERS // max(1, x[0].numel())))


def graph_bytes(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> int:
    """Bytes that one sample's forward pass keeps for its gradient, weights left out."""
    kept: dict[int, int] = {}
    weights = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer(model, x[:1].detach().clone().requires_grad_(True))
    return sum(kept.values())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module; each module's own mode is put back."""
    before = [(module, module.training) for module in model.modules()]
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
    """Objective per sample, its gradient in x, and the logits.

    Only the path to x is differentiated: no parameter gets a gradient, and the training mode stays as it is. Entries of
    the gradient that are NaN count as zero, so a single undefined derivative does not end an attack.

    Raises:
        ModelError: where the objective does not depend on x in a way that autograd can follow.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        values = objective(logits, y)
        return values.detach(), input_gradient(model, x, values), logits.detach()


def input_gradient(model: nn.Module, x: Tensor, values: Float[Tensor, "batch"], *, again: bool = False) -> Tensor:
    """Gradient in x of values the model computed from it; ``again``: there are more to come from the same pass.

    Raises:
        ModelError: where the values do not depend on x in a way that autograd can follow.
    """
    gradient = None
    if values.requires_grad:
        gradient = torch.autograd.grad(values.sum(), x, retain_graph=again, allow_unused=True)[0]
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
    """Objective per sample and logits, without a gradient."""
    with torch.no_grad():
        logits = model(x)
        return objective(logits, y), logits
