"""The checker of annotations that tests install."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks what functions of a module and methods are given and give; those made at run time are not worth compiling
    a checker for, each time anew."""
    if "<locals>" in getattr(function, "__qualname__", ""):
        return function
    return beartype(function)
