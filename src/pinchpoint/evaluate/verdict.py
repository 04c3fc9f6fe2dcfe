"""What is decided: whether an example lies in ball and box, what became of each sample, and the examples as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pinchpoint.attack import Threat
from pinchpoint.attack.samples import check_samples
from pinchpoint.errors import DataError
from pinchpoint.utils.files import write_safetensors


@dataclass(frozen=True)
class Verdict:
    """What became of each sample under one threat.

    Attributes:
        threat: ball and box.
        fallen: misclassified, clean or by an example that passed the check.
        adversarial: for fallen samples the example that fooled the model; for the others the last attempt that passed
            the check of ball and box (the input itself where there was none).
        stage: per sample ``clean`` (wrong without attack), ``certified`` (no attack can succeed), the name of the
            attack that settled it, or ``survived``.
        rejected: examples that fooled the model but lay outside ball or box; they do not count.
        attacks: what was run on the samples that stood, in turn (``known``: examples from elsewhere).
        warnings: why the gradient is not to be believed, where attacks were chosen by name.
    """

    threat: Threat
    fallen: Bool[Tensor, "batch"]
    adversarial: Float[Tensor, "batch *shape"]
    stage: tuple[str, ...]
    rejected: int
    attacks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def robust_accuracy(self) -> float:
        """Share of samples no example has fooled: of ``attacks``, so others may leave less."""
        return 1.0 - float(self.fallen.double().mean())

    @property
    def settled(self) -> dict[str, int]:
        """Number of samples by stage."""
        return {name: self.stage.count(name) for name in dict.fromkeys(self.stage)}


def within(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], threat: Threat
) -> Bool[Tensor, "batch"]:
    """Which examples, taken as float32, lie in ball and box. Written without the attack's own projection.

    The distance is computed in float64. It may exceed eps by what rounding x, eps and x + delta to float32 can add: one
    unit in the last place of the sample's largest value plus eps, for each coordinate, in the threat's norm.

    >>> x = torch.full((1, 4), 0.5)
    >>> within(x + 0.1, x, Threat("linf", 0.1)).item(), within(x + 0.11, x, Threat("linf", 0.1)).item()
    (True, False)
    """
    stored = x_adv.detach().float()
    inside = torch.isfinite(stored).flatten(1).all(1)
    if threat.box is not None:
        low, high = (torch.tensor(edge, dtype=torch.float32, device=x.device) for edge in threat.box)
        inside = inside & ((stored >= low) & (stored <= high)).flatten(1).all(1)
    unit = 2.0**-23 * (x.detach().double().flatten(1).abs().amax(1) + threat.eps)
    size = {"linf": 1.0, "l2": x[0].numel() ** 0.5, "l1": float(x[0].numel())}[threat.norm]  # of the all-ones vector
    near: Tensor = distances(x_adv, x, threat.norm) <= threat.eps + unit * size
    return inside & near


def distances(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], norm: str
) -> Float[Tensor, "batch"]:
    """How far each example, taken as float32, is from its input; computed in float64.

    >>> distances(torch.tensor([[3.0, -4.0]]), torch.zeros(1, 2), "l1").item()
    7.0
    """
    delta = (x_adv.detach().float().double() - x.detach().float().double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    size: Tensor = torch.linalg.vector_norm(delta, order, dim=1)
    return size


def save_examples(path: Path, verdict: Verdict, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]) -> None:
    """Write what was found as safetensors: tensors ``x``, ``adversarial``, ``y``, ``fallen``, ``stage`` (an index into the
    names in the header) and the threat in the header. The file appears whole or not at all.

    Raises:
        DataError: where the verdict was reached on other data.
    """
    x, y = check_samples(x, y)
    if x.shape != verdict.adversarial.shape:
        raise DataError(
            "examples are saved beside the inputs they were found for",
            f"inputs of shape {tuple(x.shape)} for examples of shape {tuple(verdict.adversarial.shape)}",
            "give the x and y that were judged",
        )
    names = list(verdict.settled)
    tensors = {
        "x": x,
        "adversarial": verdict.adversarial,
        "y": y,
        "fallen": verdict.fallen,
        "stage": torch.tensor([names.index(name) for name in verdict.stage]),
    }
    box = "none" if verdict.threat.box is None else " ".join(map(repr, verdict.threat.box))
    header = {"norm": verdict.threat.norm, "eps": repr(verdict.threat.eps), "box": box, "stages": " ".join(names)}
    write_safetensors(path, tensors, header)
