"""Images as PNG in base64: samples, what an attack made of them, and perturbations scaled to be seen."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.evaluate import logits_of
from pinchpoint.records import Example, ThreatNorm

_SIDE = 224
"""No image is wider or taller."""


def png(image: Float[Tensor, "channels height width"]) -> str:
    """An image in [0, 1] with one or three channels, enlarged by whole pixels where it is small.

    >>> png(torch.zeros(1, 2, 2))[:11]
    'iVBORw0KGgo'
    """
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    channels, height, width = pixels.shape
    if max(height, width) > _SIDE:
        scale = _SIDE / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        shrunk = torch.nn.functional.interpolate(image[None].detach().cpu().float(), size, mode="area")[0]
        return png(shrunk)
    rows = pixels.permute(1, 2, 0).contiguous().numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def drawable(x: Tensor) -> bool:
    """Whether a batch is one of pictures."""
    return x.ndim == 4 and x.shape[1] in (1, 3)


def shown(
    model: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    x_adv: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, "batch"],
    norm: ThreatNorm,
    rows: Sequence[int],
) -> list[Example]:
    """Sample, difference and attacked sample of each row, with what the model answers."""
    if not rows:
        return []
    chosen = torch.tensor(list(rows), device=x.device)
    clean, moved = logits_of(model, x[chosen]).argmax(1).tolist(), logits_of(model, x_adv[chosen]).argmax(1).tolist()
    found = []
    for place, row in enumerate(rows):
        label = int(y[row])
        found += [
            Example(kind="clean", norm=norm, sample=row, label=label, answer=clean[place], png=png(x[row])),
            Example(kind="difference", norm=norm, sample=row, label=label, answer=None, png=seen(x_adv[row] - x[row])),
            Example(kind="adversarial", norm=norm, sample=row, label=label, answer=moved[place], png=png(x_adv[row])),
        ]
    return found


def universal(delta: Float[Tensor, "channels height width"], norm: ThreatNorm) -> Example:
    """One perturbation for all."""
    return Example(kind="universal", norm=norm, sample=None, label=None, answer=None, png=seen(delta))


def seen(difference: Float[Tensor, "channels height width"]) -> str:
    """A perturbation: grey is no change, black and white the largest one."""
    largest = float(difference.abs().max())
    return png(0.5 + 0.5 * difference / largest if largest > 0 else torch.full_like(difference, 0.5))
