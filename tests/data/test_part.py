"""A part gives the samples asked for, in the order asked for."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def test_batches_are_the_rows_asked_for_in_that_order(few):
    for part, x, y in (
        (few.train, few.x_train, few.y_train),
        (few.validation, few.x_validation, few.y_validation),
        (few.test, few.x_test, few.y_test),
    ):
        assert (len(part), part.input_shape) == (len(y), few.input_shape)
        assert torch.equal(part.labels, y)
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        rows = order.split(7)
        batches = list(part.batches(rows, CPU))
        assert len(batches) == len(rows)
        for (x_batch, y_batch), chosen in zip(batches, rows, strict=True):
            assert torch.equal(x_batch, torch.stack([x[int(row)] for row in chosen]))
            assert y_batch.tolist() == [int(y[int(row)]) for row in chosen]


def test_parts_are_made_once_and_share_the_memory(few):
    assert few.train is few.train
    (x, _), *_ = few.train.batches([torch.arange(2)], CPU)
    assert x.untyped_storage().data_ptr() != few.x_train.untyped_storage().data_ptr()  # a batch may be changed
    assert few.train._on(CPU)[0] is few.x_train  # the data are not copied


def test_another_device_gets_its_copy_once(few):
    meta = torch.device("meta")
    (x, y), *_ = few.test.batches([torch.arange(3)], meta)
    assert (x.device, y.device, x.shape) == (meta, meta, (3, *few.input_shape))
    assert few.test._on(meta)[0] is few.test._on(meta)[0]
    assert few.test.labels.device == CPU
