"""CLIP models of open_clip, whole: image and text tower, judged zero-shot from class prompts.

A zero-shot classifier is a model of logits over pixels in [0, 1] like any other: normalisation, image tower, unit length,
and a frozen head whose rows are the features of the classes' prompts, scaled as CLIP scales its logits. Attacks, bounds and
penalties work on it as on others, and training it fine-tunes the image tower.

Source: A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.1.4
(prompts, averaged as features). Nothing is downloaded: weights come from a local file, or are random.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pinchpoint.data.part import Part
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models.base import Normalize
from pinchpoint.models.weights import put, read_tensors
from pinchpoint.models.zoo import Size, create
from pinchpoint.utils.torchvision import import_torchvision

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a blurry photo of a {}.",
    "a dark photo of a {}.",
    "a bright photo of a {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
    "a drawing of a {}.",
)
"""Prompts a class's features are averaged over, where no others are given."""

_PREFIX = "open_clip:"


@dataclass(frozen=True)
class Clip:
    """A CLIP model and what belongs to it.

    Attributes:
        name: as open_clip has it.
        network: image tower (``visual``) and text tower, in eval mode.
        tokenizer: texts to token numbers; what is too long is cut off.
        normalize: what pixels in [0, 1] pass first.
        input_shape: of one image.
        notes: what was assumed, one sentence each.
    """

    name: str
    network: nn.Module
    tokenizer: Callable[[list[str]], Int[Tensor, "texts context"]]
    normalize: Normalize
    input_shape: tuple[int, ...]
    notes: tuple[str, ...]


class UnitLength(nn.Module):
    """x / ||x||_2, row by row.

    >>> UnitLength()(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return functional.normalize(x, dim=1)


def load_clip(spec: str, size: Size | None = None, device: torch.device | str = "cpu", *, seed: int | None = 0) -> Clip:
    """The CLIP model of that name.

    Args:
        spec: a name of open_clip's, with random weights or, as ``NAME@FILE``, with those of a file.
        size: height and width of the images, where it is not the model's own.
        device: where it shall be.
        seed: of random weights; None: they are drawn from the global RNG.

    Raises:
        ConfigError: where open_clip is not installed.
        ModelError: for an unknown name, or one whose tokenizer would have to be downloaded.
        CheckpointError: where the file is missing, damaged, or does not fit.

    >>> load_clip("ViT-B-16-SigLIP")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pinchpoint.errors.ModelError: a CLIP model must use the tokenizer that open_clip carries, but got ViT-B-16-SigLIP, ...
    """
    name, at, file = spec.removeprefix(_PREFIX).partition("@")
    _check_tokenizer(name)
    entry = create("open_clip", name, size, seed=seed)
    network = entry.whole
    assert network is not None  # every model of open_clip has an image tower and more
    if at:
        put(read_tensors(Path(file))[0], network, file, f"give the state dict of open_clip's {name}, both towers")
    drawn = "" if seed is None else f" (seed {seed})"
    note = f"weights are those of {file}" if at else f"weights are random{drawn}; for trained ones write {spec}@FILE"
    return Clip(
        name,
        network.eval().to(device),
        _tokenizer(name),
        Normalize(entry.mean, entry.std).to(device),
        entry.input_shape,
        (note,),
    )


def zero_shot(clip: Clip, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> nn.Sequential:
    """A classifier of images from the names of their classes.

    Its image tower is the CLIP model's own: fine-tuning the classifier changes both. The head is frozen.

    Args:
        clip: the model.
        classes: a name for each, in the order of the labels.
        templates: prompts with {} where the name goes; the features of all are averaged.

    Returns:
        ``normalize``, ``network`` (the image tower), ``unit`` and ``head``; logits are exp(logit_scale) times cosines.

    Raises:
        ConfigError: where classes are fewer than two, empty or twice the same, or a template lacks its {}.
        ModelError: where the image tower does not give one vector an image.
    """
    return under(class_features(clip, classes, templates), clip)


def under(features: Float[Tensor, "classes d"], clip: Clip) -> nn.Sequential:
    """The image tower under a frozen head with those features; see ``zero_shot``."""
    _check_tower(clip, features.shape[1])
    scale, shift = getattr(clip.network, "logit_scale", None), getattr(clip.network, "logit_bias", None)
    if not isinstance(scale, Tensor):
        raise ModelError(
            "zero-shot classification needs a CLIP model", f"{clip.name} without a logit_scale", "use ViT-B-32"
        )
    head = nn.Linear(features.shape[1], len(features), bias=isinstance(shift, Tensor), device="meta")
    head.weight = nn.Parameter(scale.detach().exp() * features, requires_grad=False)
    if isinstance(shift, Tensor):
        head.bias = nn.Parameter(shift.detach().expand(len(features)).clone(), requires_grad=False)
    tower = clip.network.get_submodule("visual")
    parts = OrderedDict([("normalize", clip.normalize), ("network", tower), ("unit", UnitLength()), ("head", head)])
    return nn.Sequential(parts).eval()


def class_features(
    clip: Clip, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "classes d"]:
    """A unit vector for each class: the mean of its prompts' unit vectors, brought to length one again."""
    if len(classes) < 2 or len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise ConfigError("classes need two names or more, all different", list(classes), "name each class once")
    odd = [template for template in templates if template.count("{}") != 1]
    if odd or not templates:
        seen = f"'{odd[0]}'" if odd else "no template"
        raise ConfigError(
            "a template holds {} once, where the name of the class goes", seen, "write, for example, a photo of a {}"
        )
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    features = text_features(clip, prompts).unflatten(0, (len(classes), len(templates)))
    return functional.normalize(features.mean(1), dim=1)


def text_features(clip: Clip, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "texts d"]:
    """A unit vector for each text, on the model's device."""
    device, found = clip.normalize.mean.device, []
    for start in range(0, len(texts), batch_size):
        tokens = clip.tokenizer(list(texts[start : start + batch_size])).to(device)
        with torch.no_grad():
            found.append(clip.network.encode_text(tokens, normalize=True))  # type: ignore[operator]
    return torch.cat(found)


def image_features(clip: Clip, part: Part, batch_size: int = 64) -> Float[Tensor, "images d"]:
    """A unit vector for each image, on the model's device."""
    device, found = clip.normalize.mean.device, []
    for x, _ in part.batches(torch.arange(len(part)).split(batch_size), device):
        with torch.no_grad():
            found.append(clip.network.encode_image(clip.normalize(x), normalize=True))  # type: ignore[operator]
    return torch.cat(found)


@functools.cache
def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """Reading its vocabulary takes longer than building a small model."""
    from open_clip import get_tokenizer

    tokenizer: Callable[[list[str]], Tensor] = get_tokenizer(name)
    return tokenizer


def _check_tokenizer(name: str) -> None:
    """Refuse a model whose texts only a downloaded vocabulary could read, before it is built."""
    if importlib.util.find_spec("open_clip") is None:
        return  # building it says so
    import_torchvision()
    from open_clip import get_model_config

    text = (get_model_config(name) or {}).get("text_cfg", {})
    foreign = text.get("hf_tokenizer_name") or text.get("hf_model_name") or ("siglip" in name.lower() and name)
    if foreign:
        raise ModelError(
            "a CLIP model must use the tokenizer that open_clip carries",
            f"{name}, whose tokenizer ({foreign}) would have to be downloaded",
            "choose one such as ViT-B-32",
        )


def _check_tower(clip: Clip, width: int) -> None:
    with torch.inference_mode():
        found = clip.network.get_submodule("visual")(
            torch.zeros(1, *clip.input_shape, device=clip.normalize.mean.device)
        )
    if not isinstance(found, Tensor) or found.shape != (1, width):
        raise ModelError(
            "zero-shot classification needs one vector an image", f"other outputs from {clip.name}", "use ViT-B-32"
        )
