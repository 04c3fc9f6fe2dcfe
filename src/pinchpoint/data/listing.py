"""Images on disk before any is decoded: what a source of files lists."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

MOST_CLASSES = 1_000_000
"""A label beyond them is a mistake, and would fill the memory with counts."""


class Encoded(NamedTuple):
    """An image as a file holds it: its bytes, or None where they are to be read from the path ``name``."""

    name: str
    content: bytes | None = None


class Geometry(NamedTuple):
    """The size images are brought to: the shorter side to ``resize``, then the middle ``height`` x ``width``.

    Where ``resize`` is None, images must have that size already.
    """

    height: int
    width: int
    resize: int | None


@runtime_checkable
class Images(Protocol):
    """Encoded images by number: a list of files, or a table that holds their bytes."""

    def __getitem__(self, row: int, /) -> Encoded:
        """The image of that number."""


Role = Literal["whole", "train", "validation", "test"]
"""What a source calls a part of itself; ``whole`` where it has no parts."""


PARTS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What people call the parts of a data set, in lower case."""

NOT_PARTS = ("images", "unlabeled", "unlabelled", "unsupervised", "extra", "labels", "annotations")
"""What people call folders beside or around parts, which are no classes."""


def part_of(name: str) -> Role | None:
    """The part that a folder or split of that name is, whatever its case.

    >>> part_of("Training"), part_of("valid"), part_of("cat")
    ('train', 'validation', None)
    """
    return PARTS.get(name.lower())


class Listing(NamedTuple):
    """Some images of a source, by their numbers, and their classes."""

    images: Images
    labels: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    @property
    def singletons(self) -> bool:
        """Whether no class has two images."""
        return int(np.bincount(self.labels).max()) == 1

    def at(self, chosen: npt.NDArray[np.int64]) -> Listing:
        """Those at these places, in their order."""
        return Listing(self.images, self.labels[chosen], self.rows[chosen])


def listing(images: Images, labels: npt.NDArray[np.int64]) -> Listing:
    """All images of a source."""
    return Listing(images, labels, np.arange(len(labels)))
