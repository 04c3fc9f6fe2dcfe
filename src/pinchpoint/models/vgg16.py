"""VGG-16 with batch normalisation for images of 32 x 32: the 13 convolutions of the paper's network D and one linear layer.

Names as in torchvision's ``vgg16_bn`` and the CIFAR state dicts in circulation: features.i, classifier.

Sources: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015 (table 1,
column D); the single linear layer is customary for CIFAR (kuangliu/pytorch-cifar).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import nn

from pinchpoint.models.base import NetworkConfig, channels_of
from pinchpoint.models.cifar_resnet import he_normal

_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # widths, in units of the first; a pooling after each stage


class CifarVgg16Config(NetworkConfig):
    """VGG-16 with batch normalisation for small images; ``width`` is that of its first layer."""

    name: Literal["cifar_vgg16"] = "cifar_vgg16"
    width: int = Field(default=64, ge=1)

    def network(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """With He-normal weights from the global RNG. It takes images of 32 x 32 and more.

        >>> sum(tensor.numel() for tensor in CifarVgg16Config().network((3, 32, 32), 10).parameters())
        14728266
        """
        features: list[nn.Module] = []
        inputs = channels_of(input_shape, smallest=2 ** len(_STAGES))
        for stage in _STAGES:
            for factor in stage:
                outputs = self.width * factor
                features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            features.append(nn.MaxPool2d(2))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["features"] = nn.Sequential(*features)
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["classifier"] = nn.Linear(inputs, classes)
        return he_normal(nn.Sequential(parts))
