"""Trees of folders as people and programs leave them: what is listed equals another reading of the tree, or one sentence.

The other reading walks the tree by ``os.walk`` and knows nothing of how the package does it.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.console import pinch
from pinchpoint.data.folders import list_folder
from pinchpoint.errors import DataError, PinchpointWarning

ROLES = {
    **dict.fromkeys(("train", "TRAIN", "Training"), "train"),
    **dict.fromkeys(("val", "Valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "Testing", "EVAL"), "test"),
}
NO_CLASSES = ("images", "Unlabeled", "extra", "labels")
CLASSES = ("cat", "dog", "Zebra", "ünze", "a b", "0")
IMAGES = ("1.jpg", "2.JPEG", "3.png", "4.tif", "5.webp", "6.PGM", "7.bmp")
OTHERS = ("README.txt", "labels.csv", "8.gif", "9.heic", "noending", "1.npy")
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "._1.jpg")
HIDDEN = (".1.jpg", ".cache/1.jpg", ".cat/1.png")

classes = st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True)
below = st.sampled_from(("", "deep", "deep/er", "images"))
inside = st.lists(st.tuples(below, st.sampled_from(IMAGES)), min_size=1, max_size=4, unique=True)


@st.composite
def clean_trees(draw):
    """Files of a tree in which everything is a class's image, and nothing else is."""
    names = draw(classes)
    parts = draw(st.lists(st.sampled_from(sorted(ROLES)), max_size=3, unique_by=ROLES.get)) or [""]
    return [
        os.path.normpath(f"{part}/{name}/{folder}/{file}").lstrip("/")
        for part in parts
        for name in names
        for folder, file in draw(inside)
    ]


@st.composite
def odd_trees(draw):
    """The same with something anywhere that may not belong there."""
    files = draw(clean_trees())
    folders = sorted({"", *(str(above) for file in files for above in Path(file).parents)} - {"."})
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(folders))
        odd = draw(
            st.one_of(
                st.sampled_from((*IMAGES, *OTHERS, *LITTER, *HIDDEN)),
                st.tuples(st.sampled_from((*ROLES, *NO_CLASSES, *CLASSES)), st.sampled_from((*IMAGES, *OTHERS))).map(
                    "/".join
                ),
            )
        )
        files.append(os.path.normpath(f"{at}/{odd}").lstrip("/"))
    return sorted(set(files))


def planted(files):
    """The tree, its files empty: listing decodes none."""
    folder = tempfile.TemporaryDirectory()
    for file in files:
        path = Path(folder.name) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def listed(root):
    """What the package lists, as Counter of (role, class, path from root), and the warnings it gave."""
    with warnings.catch_warnings(record=True) as given_warnings:
        warnings.simplefilter("always")
        parts, names = list_folder(root)
    found = Counter(
        (role, names[label], os.path.relpath(listing.images[int(row)].name, root))
        for role, listing in parts.items()
        for label, row in zip(listing.labels.tolist(), listing.rows.tolist(), strict=True)
    )
    return found, names, [str(one.message) for one in given_warnings if one.category is PinchpointWarning]


def read(root):
    """Another reading: every visible image by the first folders of its path; and what else there is, told or litter."""
    images, told = Counter(), []
    for folder, inner, files in os.walk(root):
        told += [name for name in inner if name.startswith(".")]
        inner[:] = [name for name in inner if not name.startswith(".")]
        for file in files:
            path = os.path.relpath(Path(folder) / file, root)
            image = file.lower().endswith((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
            if file in LITTER:
                continue
            if file.startswith(".") or not image:
                told.append(path)
                continue
            role, *rest = path.split("/") if path.split("/")[0] in ROLES else ("whole", *path.split("/"))
            assert len(rest) > 1, f"{path} is in no class"
            images[ROLES.get(role, role), rest[0], path] += 1
    return images, told


def check(root):
    found, names, said = listed(root)
    images, told = read(root)
    assert found == images
    assert list(names) == sorted({name for _, name, _ in images})
    assert not {name.lower() for name in names} & {*map(str.lower, ROLES), *map(str.lower, NO_CLASSES)}
    assert len({role for role, _, _ in images} - {"whole"}) in (0, len({role for role, _, _ in images}))
    assert [text.split(" ", 1)[0] for text in said] == ([str(len(told))] if told else [])
    if told:
        assert any(text in said[0] for text in told)


@settings(max_examples=150, deadline=None)
@given(clean_trees())
def test_clean_trees_are_listed_whole(files):
    with planted(files) as root:
        check(Path(root))


@settings(max_examples=300, deadline=None)
@given(odd_trees())
def test_odd_trees_are_listed_whole_or_refused(files):
    with planted(files) as root:
        try:
            check(Path(root))
        except DataError as error:
            assert str(error).count("\n") == 0  # noqa: PT017 (or listed whole)


@pytest.mark.parametrize("part", ["train", "valid", "val", "Validation", "Training", "Testing", "test"])
@pytest.mark.parametrize("inner", ["unlabeled", "Extra", "images", "train", "test"])
def test_folders_in_parts_that_are_no_classes(tmp_path, part, inner):
    for name in ("cat", "dog", inner):
        (tmp_path / part / name).mkdir(parents=True)
        (tmp_path / part / name / "1.png").touch()
    with pytest.raises(DataError, match=rf"{inner}"):
        list_folder(tmp_path)


@pytest.mark.parametrize("inner", ["train", "Test", "valid"])
def test_parts_in_classes_are_not_mixed(tmp_path, inner):
    for name in ("cat", "dog"):
        (tmp_path / name / inner).mkdir(parents=True)
        (tmp_path / name / inner / "1.png").touch()
    with pytest.raises(DataError, match=r"^parts lie around the classes, as in train/cat, not in them, but got"):
        list_folder(tmp_path)


def test_the_folder_above_the_data(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").touch()
    with pytest.raises(
        DataError, match=r"must hold two classes or more, a folder each, but got only pets; name the folder"
    ):
        list_folder(tmp_path)


def test_what_is_left_out_is_told_on_the_terminal(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "labels.csv").touch()
    (tmp_path / "0.gif").touch()
    said = pinch(
        "audit", "timm:resnet18", "--data", f"imagefolder:{tmp_path}", "--image-size", 32, "--normalize", "none"
    )
    sentence = f"2 files or hidden folders are left out of the data in {tmp_path}, being no visible images: "
    assert f"{sentence}{tmp_path}/0.gif and others" in " ".join(said.err.split())
