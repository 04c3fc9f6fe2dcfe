"""Image files in folders: one folder a class, as torchvision's ImageFolder and ImageNet have them.

``PATH/CLASS/**/FILE``, or ``PATH/train/CLASS/...`` beside ``val`` and ``test``, by the names of ``listing.PARTS`` in any
case. A class's number is the rank of its name. What is neither a part, a class nor an image is refused; files beside the
classes that are no images by their endings, and hidden images and folders, are left out with a warning that counts them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pinchpoint.data.listing import NOT_PARTS, Encoded, Listing, Role, listing, part_of
from pinchpoint.errors import DataError, PinchpointWarning, printable

_WHOLE: Role = "whole"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_LITTER = (
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    ".git",
    ".ipynb_checkpoints",
    ".Trashes",
    ".Spotlight-V100",
    ".fseventsd",
)
IMAGENET_CLASSES = 1000


class Files:
    """Image files by number; 1.3 million paths, so plain strings."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, row: int) -> Encoded:
        return Encoded(self.paths[row])

    def __len__(self) -> int:
        return len(self.paths)


def list_folder(root: Path) -> tuple[dict[Role, Listing], tuple[str, ...]]:
    """The images under ``root`` by part (``whole`` where the classes lie in ``root`` itself), and the classes' names.

    Raises:
        DataError: naming the file or folder that is not as it must be.

    Warns:
        PinchpointWarning: with the number of files and hidden folders that are left out, and one of them.
    """
    if not root.is_dir():
        raise DataError("a folder of images must be there", str(root), "check the path")
    by_part: dict[Role, str] = {}
    folders = _folders(str(root))
    for folder in folders:
        part = part_of(Path(folder).name)
        if part in by_part:
            raise DataError(f"{root} may have one {part} folder", f"{by_part[part]} and {folder}", "take one away")
        if part is not None:
            by_part[part] = folder
    _check_beside(root, folders, by_part)
    left_out = _LeftOut(str(root))
    if by_part:
        left_out.beside_classes(str(root))
    classes = {part: _classes(folder, left_out) for part, folder in (by_part or {_WHOLE: str(root)}).items()}
    first, names = next(iter(classes.items()))
    for part, by_class in classes.items():
        if odd := sorted(by_class.keys() ^ names.keys()):
            seen = f"{odd[0]} in only one of {first} and {part}"
            raise DataError(f"all parts of {root} must have the same classes", seen, "add or take away that folder")
    if len(names) < 2:
        seen = f"only {_shown(next(iter(names)))}"
        raise DataError(f"{root} must hold two classes or more, a folder each", seen, "name the folder of the classes")
    left_out.tell()
    return {part: _listed(by_class) for part, by_class in classes.items()}, tuple(map(_shown, names))


class _LeftOut:
    """What is seen and not taken, to be told once."""

    def __init__(self, root: str) -> None:
        self.root, self.paths = root, list[str]()

    def beside_classes(self, folder: str) -> None:
        """Files that are no images by their endings, and what is hidden."""
        entries = _scanned(folder)
        self.hidden(entries)
        self.paths += [entry.path for entry in entries if not _is_hidden(entry.name) and not _is_dir(entry)]

    def hidden(self, entries: list[os.DirEntry[str]]) -> None:
        """Images and folders that a dot hides."""
        self.paths += [entry.path for entry in entries if _is_hidden(entry.name) and _may_be_meant(entry)]

    def tell(self) -> None:
        """How many there are, and one of them."""
        if self.paths:
            count = len(self.paths)
            what = "1 file or hidden folder is" if count == 1 else f"{count} files or hidden folders are"
            said = f"{what} left out of the data in {self.root}, being no visible images: {self.paths[0]}"
            warnings.warn(
                printable(_shown(said if count == 1 else f"{said} and others")), PinchpointWarning, stacklevel=5
            )


def _check_beside(root: Path, folders: list[str], parts: Mapping[Role, str]) -> None:
    """Refuse what would be left out, or taken for a class and is none."""
    names = [Path(folder).name for folder in folders]
    if parts and (others := [folder for folder in folders if folder not in parts.values()]):
        rule = (
            f"{root} must hold parts ({', '.join(Path(folder).name for folder in parts.values())}) or classes, not both"
        )
        raise DataError(rule, f"{_shown(others[0])} beside them", "take it away, or name the folder of classes itself")
    if odd := [name for name in names if not parts and _is_no_class(name)]:
        rule = f"{root} must hold one folder a class, or parts such as train and test"
        raise DataError(rule, f"a folder {_shown(odd[0])}", f"name {root / odd[0]} itself where that holds them")
    if folders and (
        files := [entry.path for entry in _entries(str(root)) if not _is_dir(entry) and _is_image(entry.name)]
    ):
        raise DataError(f"images of {root} must lie in the folders of their classes", files[0], "sort them")
    for folder in parts.values():
        for entry in _entries(folder):
            if _is_dir(entry) and part_of(entry.name) is not None:
                raise DataError("a part may not lie in another part", _shown(entry.path), "name one of the two itself")
            if _is_dir(entry) and _is_no_class(entry.name):
                rule = f"{folder} must hold one folder a class"
                raise DataError(
                    rule, f"a folder {_shown(entry.name)}", "take it away, or rename it where it is a class"
                )
            if not _is_dir(entry) and _is_image(entry.name):
                rule = f"images of {folder} must lie in the folders of their classes"
                raise DataError(rule, _shown(entry.path), "sort them, or take them away")


def _is_no_class(name: str) -> bool:
    return name.lower() in NOT_PARTS


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def list_imagenet(root: Path) -> tuple[dict[Role, Listing], tuple[str, ...]]:
    """As ``list_folder``, of all 1000 classes of ImageNet-1k: networks know a class by its rank among all of them.

    Raises:
        DataError: also where a class is missing or is no WordNet id.
    """
    if root.is_dir():
        for folder in _folders(str(root)):
            names = [Path(name).name for name in _folders(folder)]
            odd = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
            if len(names) != IMAGENET_CLASSES or odd:
                raise DataError(
                    f"{folder} must hold the {IMAGENET_CLASSES} classes of ImageNet-1k, named n and 8 digits",
                    f"a folder {odd[0]}" if odd else f"{len(names)} folders",
                    f"mend it, or use imagefolder:{root}, where classes are counted among those there are",
                )
    return list_folder(root)


def _shown(name: str) -> str:
    """A file's name may hold bytes that are no text."""
    return os.fsencode(name).decode("utf-8", "replace")


def _folders(folder: str) -> list[str]:
    return [entry.path for entry in _entries(folder) if _is_dir(entry)]


def _classes(folder: str, left_out: _LeftOut) -> dict[str, list[str]]:
    """The files of each class, by its name, in the order of the names."""
    left_out.beside_classes(folder)
    classes = {Path(path).name: list(_files(path, (), left_out)) for path in _folders(folder)}
    if not classes:
        raise DataError("a folder of images must hold one folder a class", f"none in {folder}", "sort the images")
    for name, files in classes.items():
        if not files:
            raise DataError("a class folder must hold images", f"none in {folder}/{name}", "fill it or take it away")
    return classes


def _files(folder: str, above: tuple[tuple[int, int], ...], left_out: _LeftOut) -> Iterator[str]:
    """The image files in a folder and the folders in it, sorted."""
    stat = os.stat(folder)  # noqa: PTH116 (strings throughout: there may be millions)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        raise DataError("folders of images may not contain themselves", folder, "take the link away")
    entries = _scanned(folder)
    left_out.hidden(entries)
    for entry in entries:
        if _is_hidden(entry.name):
            continue
        if _is_dir(entry) and part_of(entry.name) is not None:
            rule = "parts lie around the classes, as in train/cat, not in them"
            raise DataError(rule, _shown(entry.path), "sort the images, or rename that folder")
        if _is_dir(entry):
            yield from _files(entry.path, (*above, here), left_out)
        elif not entry.is_file() or not _is_image(entry.name):
            rule = f"a class folder must hold image files only ({', '.join(_SUFFIXES)})"
            raise DataError(rule, entry.path, "take it away")
        else:
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted, without what is hidden."""
    return [entry for entry in _scanned(folder) if not _is_hidden(entry.name)]


def _scanned(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError("a folder of images must be readable", str(error), "check its permissions") from None


def _is_hidden(name: str) -> bool:
    """What file managers, archives and version control leave behind, and whatever begins with a dot."""
    return name.startswith(".") or name in _LITTER


def _may_be_meant(entry: os.DirEntry[str]) -> bool:
    """Whether something hidden is an image or a folder that somebody made: no litter, and no ``._NAME`` of macOS."""
    name = entry.name
    return name not in _LITTER and not name.startswith("._") and (_is_image(name) or _is_dir(entry))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise DataError("links must lead to files or folders", str(error), "take it away") from None


def _listed(classes: Mapping[str, list[str]]) -> Listing:
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    return listing(Files([file for files in classes.values() for file in files]), labels.astype(np.int64))
