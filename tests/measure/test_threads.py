"""Threads are taken for a while and given back."""

from __future__ import annotations

import pytest
import torch

from pinchpoint.utils.threads import one_thread, side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_inside_and_as_before_after_it(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread(when=False):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_results_come_in_order_each_from_one_thread(two_threads):
    assert side_by_side(lambda n: (n, torch.get_num_threads()), [3, 1, 2]) == [(3, 1), (1, 1), (2, 1)]
    assert torch.get_num_threads() == 2
    assert side_by_side(str, []) == []


def test_the_first_item_that_fails_decides_the_error(two_threads):
    with pytest.raises(KeyError, match="3"):
        side_by_side(lambda n: {1: 1}[n], [1, 3, 2])
    assert torch.get_num_threads() == 2
