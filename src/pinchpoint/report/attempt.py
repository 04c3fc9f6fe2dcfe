"""A figure that fails costs that figure: whatever else was found out is shown all the same, with a sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from pinchpoint.errors import PinchpointWarning, StoreError

_Drawn = TypeVar("_Drawn")


def attempt(what: str, draw: Callable[[], _Drawn], instead: _Drawn) -> _Drawn:
    """What ``draw`` gives; where it fails, ``instead``, and a ``PinchpointWarning`` that names what is left out and why.

    Raises:
        StoreError: of ``draw`` itself, where a folder takes no files.

    >>> attempt("a figure", lambda: "<svg/>", "")
    '<svg/>'
    """
    try:
        return draw()
    except StoreError:
        raise
    except Exception as error:
        warnings.warn(
            f"{what} is left out: {type(error).__name__}: {error}; the record holds all it would show",
            PinchpointWarning,
            stacklevel=2,
        )
        return instead
