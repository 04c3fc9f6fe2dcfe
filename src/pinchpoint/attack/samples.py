"""What is attacked: the one reader of inputs and labels. Whatever no attack can take is refused by its first cause."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pinchpoint.attack.threat import Threat
from pinchpoint.errors import DataError, ModelError, ThreatError
from pinchpoint.utils.model_output import as_logits

_DTYPES = (torch.float32, torch.float64)


def check_samples(x: object, y: object, *threats: Threat) -> tuple[Float[Tensor, "batch *shape"], Int[Tensor, "batch"]]:
    """Inputs and labels as every attack takes them (``check_points``, ``check_labels``).

    >>> x, y = check_samples(torch.rand(3, 4), torch.tensor([0, 1, 1], dtype=torch.uint8), Threat("linf", 0.1))
    >>> y
    tensor([0, 1, 1])
    """
    x = check_points(x, *threats)
    return x, check_labels(y, x)


def check_points(x: object, *threats: Threat) -> Float[Tensor, "batch *shape"]:
    """The inputs without their history.

    Args:
        x: a batch in float32 or float64. In half precision the points of a ball are too far apart to attack in.
        threats: balls and boxes, whose edges are taken in x's dtype; where there is none, x may be anywhere.

    Raises:
        DataError: for inputs that are no such batch, not finite, or outside the box.
        ThreatError: for a ball larger than the box, and for what is no threat.
    """
    check_threats(threats)
    if not isinstance(x, Tensor):
        raise DataError("inputs must be torch tensors", type(x).__name__, "convert them with torch.as_tensor")
    seen = f"{x.dtype} of shape {tuple(x.shape)}"
    if x.layout != torch.strided or x.is_nested or x.device.type == "meta":
        kind = "on the meta device" if x.device.type == "meta" else str(x.layout)
        raise DataError("inputs must be a dense tensor that holds numbers", f"{seen}, {kind}", "load or densify them")
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise DataError(
            "inputs must be a non-empty batch of floating point tensors",
            seen,
            "convert images to float and scale them to the box",
        )
    if x.dtype not in _DTYPES:
        raise DataError(
            "inputs must be float32 or float64",
            seen,
            "give x.float(), and a model that takes it: model.float(), or one that casts its input itself",
        )
    x = x.detach().as_subclass(Tensor)  # without history, and nobody's own kind of tensor
    x = x.clone() if x.is_inference() else x
    for threat in threats:
        _check_inside(x, threat)
    return x


def check_threats(threats: Iterable[Threat]) -> None:
    """Refuse what is no threat.

    Raises:
        ThreatError: for that.
    """
    for threat in threats:
        if not isinstance(threat, Threat):
            raise ThreatError(
                "a threat must be a pinchpoint.Threat", repr(threat), 'write for example Threat("linf", 8 / 255)'
            )


def _check_inside(x: Tensor, threat: Threat) -> None:
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
            _outside(x, low, high),
            "cut what rounding has moved outside with x.clamp, put normalisation into the model and keep inputs in the box",
        )


def _outside(x: Tensor, low: float, high: float) -> str:
    """The first value outside the box, where it is and how far out; and how many there are."""
    wrong = ~torch.isfinite(x) | (x < low) | (x > high)
    sample, *place = torch.nonzero(wrong)[0].tolist()
    value = float(x[wrong][0])
    beyond = max(low - value, value - high)
    far = f", {beyond:.2g} {'below' if value < low else 'above'} it" if math.isfinite(beyond) else ""
    finite = x[torch.isfinite(x)]
    spread = f", finite ones from {float(finite.min()):.4g} to {float(finite.max()):.4g}" if len(finite) else ""
    return (
        f"{value:.9g} at {place} of input {sample}{far} ({int(wrong.sum())} of {x.numel()} values are outside{spread})"
    )


def check_labels(y: object, x: Float[Tensor, "batch *shape"]) -> Int[Tensor, "batch"]:
    """The labels as int64, on the device of the inputs: whole numbers of any dtype, in a tensor, an array or a list.

    Raises:
        DataError: for labels that are no vector with a whole number for each input.

    >>> check_labels([1.0, 0.0], torch.zeros(2, 3))
    tensor([1, 0])
    """
    try:
        labels = torch.as_tensor(y, device=x.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("labels must be whole numbers", type(y).__name__, "give a tensor of class numbers") from error
    seen = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if labels.layout != torch.strided or labels.is_complex() or labels.is_quantized:
        raise DataError("labels must be whole numbers", seen, "give a tensor of class numbers")
    if labels.ndim == 2 and len(labels) == len(x) and labels.shape[1] > 1:
        raise DataError(
            f"labels must be {len(x)} class numbers, one for each input",
            f"a matrix, {seen}",
            "take the classes of one-hot labels with y.argmax(1)",
        )
    if labels.ndim != 1:
        raise DataError(f"labels must be {len(x)} class numbers, one for each input", seen, "flatten them")
    if len(labels) != len(x):
        raise DataError(
            "there must be one label for each input", f"{len(x)} inputs and {len(labels)} labels", "check the data"
        )
    whole = labels.long()
    if labels.is_floating_point() and not bool((whole == labels).all()):
        odd = labels[whole != labels][0]
        raise DataError("labels must be whole numbers", f"{float(odd):g}", "give a tensor of class numbers")
    return whole


def check_logits(logits: object, y: Int[Tensor, "batch"], samples: int) -> None:
    """Refuse what is no finite matrix of logits, one row a sample, and labels that do not fit it.

    Raises:
        ModelError: for a model that does not return a finite matrix of logits.
        DataError: for labels out of range.
    """
    matrix = as_logits(logits, samples)
    if not bool(torch.isfinite(matrix).all()):
        rows = int((~torch.isfinite(matrix)).any(1).sum())
        raise ModelError(
            "a model must return finite logits of shape (batch, classes)",
            f"NaN or inf for {rows} of {samples} samples",
            "check the model's output",
        )
    check_classes(y, matrix.shape[1])


def check_classes(y: Int[Tensor, "batch"], classes: int) -> None:
    """Refuse labels that are none of the classes a model has logits for.

    Raises:
        DataError: for such labels.
    """
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise DataError(
            f"labels must lie in 0 ... {classes - 1}, one for each of the model's logits",
            f"{int(y.min())} ... {int(y.max())}",
            "check the data set against the model's head",
        )
