"""The CIFAR ResNets of He et al. 2016 (section 4.2) with option A shortcuts, which hold no weights.

Depth 6n + 2: one 3 x 3 convolution, three groups of n blocks of two at widths w, 2w, 4w (the second and third group halve
the image), global average pooling and one fully connected layer. The network is an ``nn.Sequential`` whose names are those
of the state dicts in circulation: conv1, bn1, layer1..3.i.{conv1,bn1,conv2,bn2}, linear.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pinchpoint.records import Norm


class Shortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and channels of zeros around the old ones, half of them on each side.

    Pruning may ``select`` other channels: output channel i is input channel ``source[i]``, or zeros where that is -1.
    """

    inputs: int
    source: tuple[int, ...]

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        self.select(inputs, (*[-1] * before, *range(inputs), *[-1] * (outputs - inputs - before)))

    def select(self, inputs: int, source: tuple[int, ...]) -> None:
        """Copy these of ``inputs`` channels from now on."""
        self.inputs, self.source = inputs, source
        before = next((position for position, channel in enumerate(source) if channel >= 0), 0)
        after = len(source) - inputs - before
        self._padding = (before, after) if source[before : before + inputs] == tuple(range(inputs)) else None
        self._index = self._positions(torch.device("cpu"))

    def _positions(self, device: torch.device) -> Tensor:
        """Of the channels to copy, once one of zeros stands behind the inputs."""
        return torch.tensor([channel if channel >= 0 else self.inputs for channel in self.source], device=device)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs lower narrower"]:
        x = x[:, :, :: self.stride, :: self.stride]
        if self._padding is not None:
            return functional.pad(x, (0, 0, 0, 0, *self._padding))
        if self._index.device != x.device:
            self._index = self._positions(x.device)
        return functional.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self._index)

    def lipschitz_constant(self, norm: Norm) -> float:
        """1: entries are kept or left out, in every l_p norm."""
        return 1.0


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = (
            nn.Identity() if (inputs, stride) == (outputs, 1) else Shortcut(inputs, outputs, stride)
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs lower narrower"]:
        inner: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(inner + self.shortcut(x))
        return out


class Architecture(NamedTuple):
    """What makes one CIFAR ResNet differ from another."""

    depth: int
    width: int
    channels: int
    classes: int


def cifar_resnet(architecture: Architecture) -> nn.Sequential:
    """The network, with He-normal weights from the global RNG. It takes images of any size.

    >>> net = cifar_resnet(Architecture(depth=20, width=16, channels=3, classes=10))
    >>> sum(parameter.numel() for parameter in net.parameters())
    269722
    """
    depth, width, channels, classes = architecture
    blocks = (depth - 2) // 6
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    parts["bn1"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU()
    for group in (1, 2, 3):
        outputs = width * 2 ** (group - 1)
        inputs, stride = (width, 1) if group == 1 else (outputs // 2, 2)
        first = Block(inputs, outputs, stride)
        parts[f"layer{group}"] = nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(4 * width, classes)
    return he_normal(nn.Sequential(parts))


def he_normal(network: nn.Sequential) -> nn.Sequential:
    """The same network, its weights drawn anew: normal of variance 2 / fan-in (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def recognise(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """The CIFAR ResNet these tensors belong to, by their names and shapes; None where they belong to none.

    >>> recognise(cifar_resnet(Architecture(8, 4, 1, 3)).state_dict())
    Architecture(depth=8, width=4, channels=1, classes=3)
    >>> recognise(nn.Linear(3, 2).state_dict()) is None
    True
    """
    first, head = tensors.get("conv1.weight"), tensors.get("linear.weight")
    blocks = sum(re.fullmatch(r"layer1\.\d+\.conv1\.weight", name) is not None for name in tensors)
    if first is None or head is None or first.ndim != 4 or head.ndim != 2 or blocks == 0:
        return None
    found = Architecture(6 * blocks + 2, first.shape[0], first.shape[1], head.shape[0])
    if 0 in found:
        return None
    with torch.device("meta"):
        wanted = _shapes(cifar_resnet(found).state_dict())
    return found if wanted == _shapes(tensors) else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without the counters of batch normalisation, which old files lack."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
