"""A network that timm, torchvision or open_clip names, as a model to train: normalised in front, logits behind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.models.base import NetworkConfig, Normalize, channels_of
from pinchpoint.models.weights import put, read_tensors
from pinchpoint.models.zoo import LIBRARIES, Entry, create


class LibraryConfig(NetworkConfig):
    """``name`` is ``timm:NAME``, ``torchvision:NAME`` or ``open_clip:NAME`` (its image tower and a linear head).

    It is built for the data's image size and classes. ``weights`` is a local file of trained weights (.safetensors, or what
    ``torch.load(weights_only=True)`` reads); a head of another number of classes than the data's is left out of it.
    ``mean`` and ``std`` are the library's own where they are not given.
    """

    name: str = Field(pattern=rf"^({'|'.join(LIBRARIES)}):.+$")
    weights: str | None = None

    def build(self, input_shape: Sequence[int], classes: int) -> nn.Sequential:
        """``normalize`` and ``network``, and ``head`` where the library's network gives features.

        Raises:
            ConfigError: where the library is not installed.
            ModelError: for an unknown name, or images the network cannot take.
            CheckpointError: where the weights are not there, are damaged, or do not fit.
        """
        library, _, name = self.name.partition(":")
        channels, size = channels_of(input_shape), (input_shape[1], input_shape[2])
        entry = create(library, name, size, None if library == "open_clip" else classes, seed=None)
        if channels != entry.input_shape[0]:
            seen = "x".join(map(str, input_shape))
            raise ModelError(f"{self.name} takes images of {entry.input_shape[0]} channels", seen, "use other data")
        if self.weights is not None:
            _load(entry, library, Path(self.weights).expanduser(), f"give the state dict of {self.name}")
        normalize = self.normalize(input_shape) or Normalize(entry.mean, entry.std)
        parts = OrderedDict([("normalize", normalize), ("network", entry.network)])
        features = _outputs(self.name, nn.Sequential(parts), input_shape)
        if not entry.logits:
            parts["head"] = nn.Linear(features, classes)
        elif features != classes:
            raise ModelError(f"{self.name} must give {classes} logits", features, "choose one with a classifier")
        return nn.Sequential(parts)


def image_tower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of CLIP's image tower, where the tensors are those of a whole CLIP."""
    tower = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    return tower or dict(tensors)


def _load(entry: Entry, library: str, file: Path, remedy: str) -> None:
    """All tensors of the file, but those of a head that is for other classes."""
    tensors = read_tensors(file)[0]
    if library == "open_clip":
        tensors = image_tower(tensors)
    own = entry.network.state_dict()
    head = [name for name in own if entry.head is not None and name.startswith(f"{entry.head}.")]
    if any(name in tensors and tensors[name].shape != own[name].shape for name in head):
        tensors |= {name: own[name] for name in head}
    put(tensors, entry.network, str(file), remedy)


def _outputs(name: str, network: nn.Module, input_shape: Sequence[int]) -> int:
    """The number of its outputs, found by one empty image."""
    training = network.training
    try:
        with torch.inference_mode():
            outputs = network.eval()(torch.zeros(1, *input_shape))
    except Exception as error:  # the network may say anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        shape = "x".join(map(str, input_shape))
        raise ModelError(f"{name} must take images of {shape}", said, "choose another size of the images") from None
    network.train(training)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        seen = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(f"{name} must give one vector an image", seen, "choose a classifier")
    return outputs.shape[1]
