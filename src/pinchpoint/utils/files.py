"""Files: written whole or not at all, with one sentence where the disk refuses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pinchpoint.errors import StoreError


def write_safetensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write beside the target and rename, so a reader never sees half a file.

    Raises:
        StoreError: where the folder cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writable(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as temporary:
        save_file(stored, Path(temporary) / path.name, metadata=header)
        (Path(temporary) / path.name).replace(path)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make the folder; what the system says where it, or what is written in it, cannot be made becomes one sentence.

    Raises:
        StoreError: for whatever goes wrong with the disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        seen = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{folder} must be writable", seen, "name another folder or free some space") from error
