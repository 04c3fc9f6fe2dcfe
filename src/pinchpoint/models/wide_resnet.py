"""Wide residual networks WRN-d-k: depth d = 6n + 4, groups of n pre-activated blocks at widths 16k, 32k, 64k.

Names as in the state dicts of RobustBench and TRADES: conv1, block1..3.layer.i.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc.

Source: S. Zagoruyko, N. Komodakis, Wide Residual Networks, BMVC 2016 (table 1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from pinchpoint.models.base import NetworkConfig, channels_of
from pinchpoint.models.cifar_resnet import he_normal


class WideResNetConfig(NetworkConfig):
    """WRN-``depth``-``widen``; ``dropout`` acts between the convolutions of each block."""

    name: Literal["wide_resnet"] = "wide_resnet"
    depth: int = Field(default=28, ge=10)
    widen: int = Field(default=10, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 4:
            raise ValueError("Input should be 6n + 4, for example 16, 28, 34 or 40")
        return depth

    def network(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """With He-normal weights from the global RNG. It takes images of any size.

        >>> sum(tensor.numel() for tensor in WideResNetConfig(depth=16, widen=4).network((3, 32, 32), 10).parameters())
        2748890
        """
        blocks = (self.depth - 4) // 6
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = nn.Conv2d(channels_of(input_shape), 16, 3, padding=1, bias=False)
        width = 16
        for group in (1, 2, 3):
            outputs = 16 * self.widen * 2 ** (group - 1)
            first = PreActivatedBlock(width, outputs, 1 if group == 1 else 2, self.dropout)
            others = (PreActivatedBlock(outputs, outputs, 1, self.dropout) for _ in range(blocks - 1))
            parts[f"block{group}"] = nn.Sequential(OrderedDict(layer=nn.Sequential(first, *others)))
            width = outputs
        parts["bn1"] = nn.BatchNorm2d(width)
        parts["relu"] = nn.ReLU()
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["fc"] = nn.Linear(width, classes)
        return he_normal(nn.Sequential(parts))


class PreActivatedBlock(nn.Module):
    """shortcut + conv2(dropout(relu(bn2(conv1(a))))) with a = relu(bn1(x)).

    The shortcut is x, or a 1 x 1 convolution of a where the number of channels changes.
    """

    convShortcut: nn.Conv2d | None  # not our spelling: the name in the state dicts

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs lower narrower"]:
        activated = self.relu1(self.bn1(x))
        inner: Tensor = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        return inner + (x if self.convShortcut is None else self.convShortcut(activated))
