"""Models by the names that timm, torchvision and open_clip give them, with the weights of a file or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from pinchpoint.models.library import LibraryConfig, image_tower
from pinchpoint.models.normalisation import Normalisation, shown
from pinchpoint.models.sources.source import Source, by, checked, resized
from pinchpoint.models.weights import put, read_tensors
from pinchpoint.models.zoo import Entry, create


def from_library(
    spec: str, library: str, rest: str, input_size: tuple[int, ...] | None, asked: Normalisation | None
) -> Source:
    """``library:NAME`` or ``library:NAME@FILE``, normalised as asked, else as the library's own table says.

    Raises:
        ConfigError: where the library is not installed.
        CheckpointError: where the file is missing, damaged or does not fit.
        ModelError: for a name it does not have, or a size the network cannot take.
    """
    name, at, file = rest.partition("@")
    height, width = (None, None) if input_size is None else resized(spec, (3, 0, 0), input_size)[1:]
    size = None if height is None or width is None else (height, width)
    entry = create(library, name, size)
    if at:
        tensors = read_tensors(Path(file).expanduser())[0]
        if library == "open_clip":
            tensors = image_tower(tensors)
        classes = _classes_of(tensors, entry)
        if classes is not None:
            entry = create(library, name, size, classes)
        put(tensors, entry.network, file, f"give the state dict of {library}'s {name}")
        notes = [f"weights are those of {file}"]
    else:
        notes = [f"weights are random (seed 0); for trained ones write {spec}@FILE"]
    if asked is None:
        own = shown(entry.mean, entry.std)
        normalisation, given = Normalisation(entry.mean, entry.std), None
        notes.append(f"inputs are pixels in [0, 1], normalised as {library} says: {own}")
    else:
        normalisation, given = asked, asked.explicit
        notes.append(f"inputs are normalised as asked: {normalisation}")
    if input_size is None:
        notes.append(f"the input size is {library}'s, {by(entry.input_shape)}; --input-size changes it")
    if not entry.logits:
        notes.append("its outputs are features, not logits")
    model: nn.Module = (given or normalisation).before(entry.network, entry.input_shape)
    source = Source(spec, model.eval(), entry.input_shape, None, tuple(notes), normalisation=str(normalisation))
    source = checked(source, entry.input_shape)
    if not entry.logits:
        return replace(source, classes=None)
    mean, std = (None, None) if given is None else given
    return replace(source, config=LibraryConfig(name=f"{library}:{name}", mean=mean, std=std))


def _classes_of(tensors: Mapping[str, Tensor], entry: Entry) -> int | None:
    """The number of classes of these weights where it is another than the network's, as after fine-tuning."""
    name = f"{entry.head}.weight"
    found, own = tensors.get(name), entry.network.state_dict().get(name)
    if found is None or own is None or found.shape[1:] != own.shape[1:] or len(found) in (0, len(own)):
        return None
    return len(found)
