"""Image-text retrieval: which caption belongs to an image, and which image to a caption (Flickr30k and its like).

A query finds its match at rank r where r - 1 of the others are not less similar to it: ties, and NaN, count against the
model, so that one whose features are all the same finds nothing. An image has found its captions where the best of them is
among the first k; its other captions are no competitors.

Layout: a folder of images, and beside it ``results_20130124.token`` (lines FILE#NUMBER, a tab, the caption) or Karpathy's
``dataset_flickr30k.json``, which also divides the images into train, val and test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pinchpoint.data.folders import Files
from pinchpoint.data.listing import Geometry, listing
from pinchpoint.data.streamed import FilePart, Loading
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.models.clip import Clip, image_features, text_features

KS = (1, 5, 10)
"""Ranks that recall is usually given at."""

_FOLDERS = ("flickr30k-images", "flickr30k_images", "images")
_TOKENS, _SPLITS = "results_20130124.token", "dataset_flickr30k.json"


@dataclass(frozen=True)
class Captioned:
    """Images on disk and their captions; ``image_of`` is the number of each caption's image."""

    images: tuple[Path, ...]
    captions: tuple[str, ...]
    image_of: Int[Tensor, "captions"]


@dataclass(frozen=True)
class Recalls:
    """Shares of queries that find their match among the first k, by k."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def load_captions(folder: Path, split: str | None = None) -> Captioned:
    """Images and captions of a folder laid out like Flickr30k.

    Args:
        folder: holds a folder of images and a file of captions.
        split: ``train``, ``val`` or ``test`` of Karpathy's file; None takes all images.

    Raises:
        DataError: where a file is missing or malformed, or an image has no caption.
        ConfigError: for a split that is not there.
    """
    images = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), None)
    if images is None:
        raise DataError(f"{folder} must hold the images in {' or '.join(_FOLDERS)}", "none of them", "name it so")
    if (folder / _SPLITS).is_file():
        captions = _from_json(folder / _SPLITS, split)
    elif (folder / _TOKENS).is_file():
        if split is not None:
            raise ConfigError(
                f"a split is read from {_SPLITS}", f"{split} and only {_TOKENS}", "get that file, or take all"
            )
        captions = _from_tokens(folder / _TOKENS)
    else:
        raise DataError(f"{folder} must hold {_SPLITS} or {_TOKENS}", "neither", "put the captions there")
    for name, texts in captions.items():
        if not texts or Path(name).name != name or not (images / name).is_file():
            seen = f"{name}, which is not in {images}" if texts else f"{name} without one"
            raise DataError("every caption needs its image and every image a caption", seen, "mend the files")
    paths = tuple(images / name for name in captions)
    image_of = torch.tensor([number for number, texts in enumerate(captions.values()) for _ in texts])
    return Captioned(paths, tuple(text for texts in captions.values() for text in texts), image_of)


def retrieval(
    clip: Clip, data: Captioned, *, ks: Sequence[int] = KS, batch_size: int = 64, workers: int = 0
) -> Recalls:
    """Recall of a CLIP model in both directions. Images are resized to its input size and cut to their middle.

    Args:
        clip: the model, on its device.
        data: images and captions.
        ks: ranks.
        batch_size: how many images pass the image tower together.
        workers: processes that decode images.

    Raises:
        DataError: naming a file that is no image.
    """
    _, height, width = clip.input_shape
    files = listing(Files([str(path) for path in data.images]), np.zeros(len(data.images), dtype=np.int64))
    part = FilePart(files, Loading(Geometry(height, width, max(height, width)), workers), "limit_test")
    return recalls(image_features(clip, part, batch_size), text_features(clip, data.captions), data.image_of, ks=ks)


def recalls(
    images: Float[Tensor, "images d"],
    texts: Float[Tensor, "captions d"],
    image_of: Int[Tensor, "captions"],
    *,
    ks: Sequence[int] = KS,
    batch_size: int = 1024,
) -> Recalls:
    """Recall in both directions from features, by their inner products, a batch of queries at a time.

    Raises:
        DataError: where captions and their images do not fit each other, or an image has no caption.

    >>> one = torch.eye(2)
    >>> recalls(one, one.flip(0), torch.tensor([1, 0]), ks=(1,))
    Recalls(image_to_text={1: 1.0}, text_to_image={1: 1.0})
    """
    count = len(images)
    if len(image_of) != len(texts) or not torch.equal(image_of.unique().cpu(), torch.arange(count)):
        raise DataError(
            "every caption needs its image and every image a caption",
            f"{count} images, {len(texts)} captions and {len(image_of)} references",
            "number the images from 0",
        )
    if not ks or min(ks) < 1:
        raise ConfigError("recall is taken at ranks from one", tuple(ks), "use 1, 5 and 10")
    owner, numbers = image_of.to(images.device), torch.arange(count, device=images.device)
    queries = zip(texts.split(batch_size), owner.split(batch_size), strict=True)
    by_text = torch.cat([_image_ranks(images, some, own) for some, own in queries])
    queries = zip(images.split(batch_size), numbers.split(batch_size), strict=True)
    by_image = torch.cat([_text_ranks(some, texts, own, owner) for some, own in queries])
    return Recalls(_shares(by_image, ks), _shares(by_text, ks))


def _shares(ranks: Int[Tensor, "queries"], ks: Sequence[int]) -> dict[int, float]:
    return {k: float((ranks <= k).double().mean()) for k in ks}


def _image_ranks(
    images: Float[Tensor, "images d"], texts: Float[Tensor, "some d"], own: Int[Tensor, "some"]
) -> Int[Tensor, "some"]:
    """The rank of each caption's own image."""
    similar = texts @ images.T
    less = similar < similar.gather(1, own[:, None])  # neither the image itself nor, where there is one, NaN
    return (~less).sum(1)


def _text_ranks(
    images: Float[Tensor, "some d"],
    texts: Float[Tensor, "captions d"],
    numbers: Int[Tensor, "some"],
    owner: Int[Tensor, "captions"],
) -> Int[Tensor, "some"]:
    """The rank of the best of each image's own captions among those of others."""
    similar = images @ texts.T
    own = numbers[:, None] == owner
    best = similar.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return (~(similar < best) & ~own).sum(1) + 1


def _from_tokens(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fits = re.fullmatch(r"([^\t#/\\]+)#\d+\t(.*\S.*)", line)
        if fits is None and line.strip():
            raise DataError(
                f"each line of {path.name} must be FILE#NUMBER, a tab and a caption",
                f"line {number}: {line}",
                "mend it",
            )
        if fits is not None:
            found.setdefault(fits[1], []).append(fits[2].strip())
    if not found:
        raise DataError(f"{path.name} must hold captions", "none", "copy it again")
    return found


def _from_json(path: Path, split: str | None) -> dict[str, list[str]]:
    try:
        content = json.loads(_text(path))["images"]
        listed = [
            (str(image["filename"]), str(image["split"]), [str(one["raw"]) for one in image["sentences"]])
            for image in content
        ]
    except (ValueError, LookupError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path.name} must list images with filename, split and sentences", said, "copy it again"
        ) from None
    splits = sorted({name for _, name, _ in listed})
    if split is not None and split not in splits:
        raise ConfigError(f"a split is one of {', '.join(splits)}", split, "choose one of them, or take all")
    return {name: texts for name, part, texts in listed if split in (None, part)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} must be a readable text", str(error), "copy it again") from None
