"""How many threads: LAPACK on small problems only waits for a second one, and waits long where the machine is busy.

Measured on two cores (torch 2.13, MKL, float64), one thread against two: eigvalsh of 512 x 512 takes 20 ms and 22 ms,
svdvals 42 and 42; at 2048 x 2048 676 and 606 ms. With another process on the second core the same calls on two threads
took 5 to 50 times as long. So layers share the cores, one thread each, rather than one layer taking them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """torch runs on one thread inside the block, and as before after it.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    if not when or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """``[work(item) for item in items]``, as many at a time as torch has threads, each on one thread.

    Calls start in the order of the items, so put the longest first. The first item that fails decides the error.

    >>> side_by_side(lambda n: n * n, [3, 2, 1])
    [9, 4, 1]
    """
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        return [work(item) for item in items]
    # MKL counts threads for each calling thread: what this one sets does not reach the others
    with one_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))
