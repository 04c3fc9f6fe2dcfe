"""Networks that timm, torchvision and open_clip name, with the input size and normalisation their own tables give.

Nothing is downloaded: the networks come with random weights from a seed.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.utils.torchvision import import_torchvision

Size = tuple[int, int]
"""Height and width of the images."""


@dataclass(frozen=True)
class Entry:
    """A network of a library, as the library describes it.

    Attributes:
        network: with random weights, normalisation not included.
        input_shape: channels, height and width of one image.
        mean, std: of the normalisation its weights were, or would be, trained with.
        logits: whether its outputs are logits.
        head: the path of its last layer, where the library or the network tells.
        whole: the model that the network is the image tower of.
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logits: bool = True
    head: str | None = None
    whole: nn.Module | None = None


def create(
    library: str, name: str, size: Size | None = None, classes: int | None = None, seed: int | None = 0
) -> Entry:
    """The network that ``library`` calls ``name``, for images of a size other than its own where one is given.

    Args:
        library: ``timm``, ``torchvision`` or ``open_clip``.
        name: as the library's own list has it.
        size: height and width of the images.
        classes: number of logits, where it is not the library's.
        seed: of the weights; None: they are drawn from the global RNG.

    Raises:
        ConfigError: where the library is not installed.
        ModelError: for a name it does not have, or a network it cannot build so.
    """
    for package in dict.fromkeys((library, "torchvision")):  # timm and open_clip need torchvision
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{library}:{name} needs {package}",
                "an installation without it",
                "pip install 'pinchpoint[vision]'",
            )
    import_torchvision()
    with _quiet(), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _LIBRARIES[library](name, size, classes)


def _timm(name: str, size: Size | None, classes: int | None) -> Entry:
    import timm

    _check_name("timm", name, timm.list_models())
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    network = _build(f"timm:{name}", lambda **also: timm.create_model(name, **options, **also), img_size=size)
    described = network.pretrained_cfg
    heads = described.get("classifier")
    return Entry(
        network,
        (described["input_size"][0], *(size or described["input_size"][1:])),
        tuple(described["mean"]),
        tuple(described["std"]),
        logits=network.num_classes > 0,
        head=heads[0] if isinstance(heads, tuple) else heads,
    )


def _torchvision(name: str, size: Size | None, classes: int | None) -> Entry:
    models = import_torchvision().models
    _check_name("torchvision", name, models.list_models(module=models))
    described = models.get_model_weights(name).DEFAULT.transforms()
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    network = _build(
        f"torchvision:{name}", lambda **also: models.get_model(name, **options, **also), image_size=_side(size)
    )
    height, width = size or 2 * (described.crop_size[0],)
    heads = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    return Entry(
        network,
        (3, height, width),
        tuple(described.mean),
        tuple(described.std),
        head=heads[-1] if heads else None,
    )


def _open_clip(name: str, size: Size | None, classes: int | None) -> Entry:
    import open_clip

    _check_name("open_clip", name, open_clip.list_models())
    clip = _build(
        f"open_clip:{name}",
        lambda **also: open_clip.create_model(name, device=torch.get_default_device(), **also),
        force_image_size=_side(size),
    )
    tower = clip.visual
    described = tower.preprocess_cfg
    own = tower.image_size
    height, width = size or (own if isinstance(own, tuple) else (own, own))
    return Entry(tower, (3, height, width), tuple(described["mean"]), tuple(described["std"]), logits=False, whole=clip)


def _side(size: Size | None) -> Size | int | None:
    """Of square images by one number, as not every network takes two."""
    return size[0] if size is not None and size[0] == size[1] else size


_LIBRARIES: dict[str, Callable[[str, Size | None, int | None], Entry]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
}

LIBRARIES = tuple(_LIBRARIES)
"""What may stand before the colon."""


def _check_name(library: str, name: str, names: Sequence[str]) -> None:
    bare = name.partition(".")[0] if library == "timm" else name  # resnet18.a1_in1k: a tag names weights
    if bare in names:
        return
    close = difflib.get_close_matches(bare, names, n=3)
    also = f"perhaps {' or '.join(close)} is meant" if close else f"it has {len(names)}, from {names[0]} to {names[-1]}"
    raise ModelError(f"{library} must have a model of that name", name, also)


def _build(spec: str, make: Callable[..., nn.Module], **size: Size | int | None) -> Any:
    """Built for the size where the network has to know it (transformers do), else without (convolutions do not)."""
    known = {key: value for key, value in size.items() if value is not None}
    try:
        try:
            return make(**known)
        except TypeError:
            if not known:
                raise
            return make()
    except Exception as error:  # whatever the library says, and it may say anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{spec} must be a network that can be built here", said, "choose another one") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own remarks on weights that were not loaded: Pinchpoint says so itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
