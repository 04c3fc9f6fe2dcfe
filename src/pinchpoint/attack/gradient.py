"""What every gradient attack does to a model: check the input once, then ask for values and input gradients."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.objectives import Objective
from pinchpoint.attack.threat import Threat
from pinchpoint.errors import DataError, ModelError


def check_inputs(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], threat: Threat
) -> Float[Tensor, "batch classes"]:
    """Refuse what no attack can take; return the clean logits.

    Raises:
        DataError: for integer images, values outside the box or not finite, labels out of range or of another length.
        ModelError: for a model that does not return a finite matrix of logits.
    """
    if not x.dtype.is_floating_point or x.ndim < 2 or x.shape[0] == 0:
        raise DataError(
            "inputs must be a non-empty batch of floating point tensors",
            f"{x.dtype} of shape {tuple(x.shape)}",
            "convert images to float and scale them to the box",
        )
    low, high = threat.box if threat.box is not None else (-torch.inf, torch.inf)
    if not bool(torch.isfinite(x).all()) or float(x.min()) < low or float(x.max()) > high:
        raise DataError(
            f"inputs must be finite and lie in the box [{low:g}, {high:g}]",
            f"values {float(x.min()):.6g} ... {float(x.max()):.6g}",
            "put normalisation into the model and keep inputs in the box",
        )
    with torch.no_grad():
        logits: Tensor = model(x)
    if logits.ndim != 2 or logits.shape[0] != x.shape[0] or not bool(torch.isfinite(logits).all()):
        seen = f"shape {tuple(logits.shape)}" if logits.ndim != 2 or logits.shape[0] != x.shape[0] else "NaN or inf"
        raise ModelError(
            "a model must return finite logits of shape (batch, classes)", seen, "check the model's output"
        )
    if y.shape != x.shape[:1] or y.dtype != torch.long or int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise DataError(
            f"labels must be {x.shape[0]} integers (torch.long) in 0 ... {logits.shape[1] - 1}",
            f"{y.dtype} of shape {tuple(y.shape)}, {y.min().item() if y.numel() else '-'} ... "
            f"{y.max().item() if y.numel() else '-'}",
            "check the data set against the model's head",
        )
    return logits


def fooled(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Samples whose largest logit is not the label's."""
    return logits.argmax(1) != y


def value_and_gradient(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective per sample, its gradient in x, and the logits.

    Only the path to x is differentiated: no parameter gets a gradient, and training mode and RNG stay as they are.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        values = objective(logits, y)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient, logits.detach()


def value(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Objective per sample and logits, without a gradient."""
    with torch.no_grad():
        logits = model(x)
        return objective(logits, y), logits
