"""A bar over the steps of a training; on stderr that is no terminal, a line an epoch, twice a minute at most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pinchpoint.cli.options import err

if TYPE_CHECKING:
    from pinchpoint.recipes.recipe import Watch
    from pinchpoint.records import EpochRecord

_EVERY = 30.0  # seconds


@contextmanager
def epochs(total: int, first: str = "starting", what: str = "") -> Iterator[Watch]:
    """Shows the epoch in hand and what the last one came to.

    Args:
        total: epochs.
        first: shown until the first step.
        what: before each epoch, where a training is part of something else.
    """
    from pinchpoint.recipes.recipe import Watch

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    told = time.monotonic()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task(first, total=None, last="")

        def step(epoch: int, done: int, of: int) -> None:
            progress.update(bar, description=f"{what}epoch {epoch} of {total}", completed=done, total=of)

        def epoch(record: EpochRecord) -> None:
            nonlocal told
            last = f"validation loss {record.validation_loss:.4g}, accuracy {record.validation_accuracy:.1%}"
            progress.update(bar, last=last)
            if not err.is_terminal and time.monotonic() - told >= _EVERY:
                told = time.monotonic()
                err.print(f"{what}epoch {record.number} of {total}: {last}", soft_wrap=True)

        yield Watch(step, epoch)
