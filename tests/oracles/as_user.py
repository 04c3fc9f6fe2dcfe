"""Calls as a user makes them: without the shape checks that tests install, which would answer before our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jaxtyping import config

from pinchpoint.errors import PinchpointError


@contextmanager
def refused(kind: type[PinchpointError], text: str) -> Iterator[None]:
    """The block raises this error with exactly this text."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(kind) as caught:
            yield
    finally:
        config.update("jaxtyping_disable", before)
    assert str(caught.value) == text
