"""Memory that is free, given back to the system."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """What the C library keeps of memory that nobody uses any more, goes back to the system, where it knows how to.

    After thousands of tensors of all sizes that is a gigabyte or more: ConvNeXt-Base's bounds alone left 1.2 of them.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc has it, others have not
        ctypes.CDLL(None).malloc_trim(0)
