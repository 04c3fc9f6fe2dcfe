"""ResNet-18 for images of CIFAR's size: the ImageNet network with a 3 x 3 first convolution and no first pooling.

Four groups of two basic blocks at widths w, 2w, 4w, 8w (w = 64), each but the first halving the image; where a block changes
the shape, its shortcut is a 1 x 1 convolution with batch normalisation (option B). Names as in the state dicts in
circulation (kuangliu/pytorch-cifar): conv1, bn1, layer1..4.i.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import nn

from pinchpoint.models.base import NetworkConfig, channels_of
from pinchpoint.models.cifar_resnet import Block, he_normal


class CifarResNet18Config(NetworkConfig):
    """ResNet-18 for small images; ``width`` is that of its first group."""

    name: Literal["cifar_resnet18"] = "cifar_resnet18"
    width: int = Field(default=64, ge=1)

    def network(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """With He-normal weights from the global RNG. It takes images of any size.

        >>> sum(tensor.numel() for tensor in CifarResNet18Config().network((3, 32, 32), 10).parameters())
        11173962
        """
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = nn.Conv2d(channels_of(input_shape), self.width, 3, padding=1, bias=False)
        parts["bn1"] = nn.BatchNorm2d(self.width)
        parts["relu"] = nn.ReLU()
        width = self.width
        for group in (1, 2, 3, 4):
            outputs = self.width * 2 ** (group - 1)
            stride = 1 if group == 1 else 2
            parts[f"layer{group}"] = nn.Sequential(_block(width, outputs, stride), _block(outputs, outputs, 1))
            width = outputs
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["linear"] = nn.Linear(width, classes)
        return he_normal(nn.Sequential(parts))


def _block(inputs: int, outputs: int, stride: int) -> Block:
    block = Block(inputs, outputs, stride)
    if (inputs, stride) != (outputs, 1):
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        block.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
    return block
