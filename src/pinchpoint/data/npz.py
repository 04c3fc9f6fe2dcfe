"""Arrays from an ``.npz``: nothing is unpickled, and every size is checked before memory is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pinchpoint.errors import DataError

_GB = 1e9
_TIGHT, _LARGE = (
    100,
    2**28,
)  # images packed a hundred times smaller than they are, once there are many of them, are none
_FLOAT32 = 4


def read_npz(
    path: Path, wanted: Sequence[str], memory_gb: float, words: str | None = None
) -> tuple[list[npt.NDArray[Any]], tuple[str, ...] | None]:
    """The wanted arrays, and the words in the array called ``words``, where there is one and it is a list of words.

    Args:
        path: a file that ``numpy.savez`` or ``savez_compressed`` wrote.
        wanted: names of arrays.
        memory_gb: the most that they may take, as they are or as float32.
        words: name of an array of strings.

    Raises:
        DataError: where the file or an array is not there, is damaged, or holds Python objects, or they are too large.
    """
    if not path.is_file():
        raise DataError("a data file must exist", str(path), "check the path or PINCHPOINT_DATA")
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise DataError(
                    f"{path.name} must be an .npz of plain arrays", "a single array", "write it with numpy.savez"
                )
        if not zipfile.is_zipfile(path):
            raise _unreadable(path, "no zip archive, perhaps a pickle or a part of one")
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, wanted, memory_gb, words)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own, and a hostile file can raise more
        raise _unreadable(path, str(error) or type(error).__name__) from None


def _read(
    path: Path, archive: zipfile.ZipFile, wanted: Sequence[str], memory_gb: float, words: str | None
) -> tuple[list[npt.NDArray[Any]], tuple[str, ...] | None]:
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if missing := [name for name in wanted if name not in infos]:
        raise DataError(
            f"{path.name} must hold the arrays {', '.join(wanted)}", f"none called {missing[0]}", "rename them"
        )
    size = sum(_checked(path, archive, infos[name], name) for name in wanted) / _GB
    if size > memory_gb:
        rule = f"the arrays in {path.name} may take {memory_gb:g} GB in memory"
        raise DataError(rule, f"{size:.3g} GB", "make it smaller, or raise data.memory_gb")
    arrays = []
    for name in wanted:
        with archive.open(infos[name]) as file:
            arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    return arrays, None if words is None or words not in infos else _words(archive, infos[words])


def _checked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> int:
    """The bytes the array takes, as it is or as float32; header and archive must agree on them."""
    with archive.open(info) as file:
        shape, dtype = _header(file)
        if dtype.hasobject:
            raise _unreadable(path, f"{name} of Python objects, which would have to be unpickled")
        count = math.prod(shape)
        if min(shape, default=0) < 0 or file.tell() + count * dtype.itemsize != info.file_size:
            seen = f"{name} of shape {shape} and type {dtype} in {info.file_size} bytes"
            raise _unreadable(path, seen)
    if info.file_size > max(_LARGE, _TIGHT * info.compress_size):
        seen = f"{name}, {info.file_size} bytes packed in {info.compress_size}"
        raise DataError(f"{path.name} must hold images, which cannot be packed so tightly", seen, "write it anew")
    return count * max(_FLOAT32, dtype.itemsize)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"an array of format {version}")
    return shape, dtype


def _words(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[str, ...] | None:
    if info.file_size > _LARGE:
        return None
    with archive.open(info) as file:
        shape, dtype = _header(file)
        if dtype.kind != "U" or len(shape) != 1 or file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            return None
    with archive.open(info) as file:
        return tuple(np.lib.format.read_array(file, allow_pickle=False).tolist())


def _unreadable(path: Path, seen: str) -> DataError:
    return DataError(f"{path.name} must be a readable .npz of plain arrays", seen, "write it anew")
