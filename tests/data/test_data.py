"""Data by name: what comes back, against numpy; what is refused, by the sentence it is refused with."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.utils.config import validate


def parts(data):
    return {
        "train": (data.x_train, data.y_train),
        "validation": (data.x_validation, data.y_validation),
        "test": (data.x_test, data.y_test),
    }


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_without_overlap(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    theirs = sorted((image.tobytes(), int(label)) for image, label in zip(bunch.images / 16, bunch.target, strict=True))
    ours = sorted(
        (image.double().numpy().tobytes(), int(label))
        for x, y in parts(digits).values()
        for image, label in zip(x, y, strict=True)
    )
    assert len(ours) == 1797
    assert ours == theirs  # every sample once: the parts are disjoint and nothing is lost
    assert {tuple(x.shape[1:]) for x, _ in parts(digits).values()} == {(1, 8, 8)}
    assert {x.dtype for x, _ in parts(digits).values()} == {torch.float32}
    assert {y.dtype for _, y in parts(digits).values()} == {torch.int64}
    assert digits.classes == 10


def test_digits_are_stratified(digits):
    whole = np.bincount(np.concatenate([y.numpy() for _, y in parts(digits).values()]), minlength=10) / 1797
    for _, y in parts(digits).values():
        expected = whole * len(y)
        assert np.abs(np.bincount(y.numpy(), minlength=10) - expected).max() <= 1


def test_digits_split_by_shares_and_seed():
    first, again = (load(DataConfig(split_seed=3)) for _ in range(2))
    other = load(DataConfig(split_seed=4))
    for (x, y), (x_again, y_again), (x_other, _) in zip(
        parts(first).values(), parts(again).values(), parts(other).values(), strict=True
    ):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
        assert not torch.equal(x, x_other)
    shares = load(DataConfig(test_share=0.5, validation_share=0.3))
    assert len(shares.y_test) == 899
    assert len(shares.y_validation) == pytest.approx(0.3 * 898, abs=1)


def test_limits_keep_the_first_samples(digits):
    few = load(DataConfig(limit_test=7))
    assert torch.equal(few.x_test, digits.x_test[:7])
    assert len(load(DataConfig(limit_train=200)).y_train) == 170


def test_a_share_too_small_to_hold_every_class():
    for options in ({"test_share": 0.001}, {"validation_share": 0.001}):
        with pytest.raises(
            DataError, match=r"a sample of each class, but got [0-9]+ samples of 10 classes, .* a share of 0.001"
        ):
            load(DataConfig(**options))


# --- files -----------------------------------------------------------------------------------------------------------


def test_npz_bytes_become_floats(write, arrays):
    data = load(write())
    assert data.classes == 3
    assert data.input_shape == (1, 4, 4)
    np.testing.assert_array_equal(data.x_test.numpy(), arrays["x_test"].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.y_test.numpy(), arrays["y_test"])
    assert (len(data.y_train), len(data.y_validation)) == (51, 9)
    assert np.bincount(data.y_validation.numpy()).tolist() == [3, 3, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_npz_floats_are_taken_as_they_are(write, arrays, dtype):
    x = (arrays["x_test"] / 255).astype(dtype)
    data = load(write(x_train=(arrays["x_train"] / 255).astype(dtype), x_test=x))
    np.testing.assert_array_equal(data.x_test.numpy(), x.astype(np.float32))
    assert data.x_test.dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, ">i8"])
def test_labels_of_any_integer_type(write, arrays, dtype):
    data = load(write(y_train=arrays["y_train"].astype(dtype), y_test=arrays["y_test"].astype(dtype)))
    assert data.y_test.dtype == torch.int64
    np.testing.assert_array_equal(data.y_test.numpy(), arrays["y_test"])


def test_flat_inputs(write, arrays):
    flat = {name: arrays[name].reshape(len(arrays[name]), -1) for name in ("x_train", "x_test")}
    assert load(write(**flat)).input_shape == (16,)


def test_classes_are_those_of_the_data_set_whatever_the_limits_leave(write, arrays):
    order = {"y_train": np.repeat([0, 1, 2], 20), "y_test": np.repeat([0, 1, 2], 4)}
    config = write(**order).model_copy(update={"limit_train": 30, "limit_test": 3})
    data = load(config)
    assert data.y_train.max() == 1
    assert data.classes == 3


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_array(write, missing):
    rule = "data.npz must hold the arrays x_train, y_train, x_test, y_test"
    with pytest.raises(DataError, match=f"^{rule}, but got none called {missing}; rename them.$"):
        load(write(**{missing: None}))


def test_a_missing_file(tmp_path):
    with pytest.raises(
        DataError, match=r"a data file must exist, but got .*gone.npz; check the path or PINCHPOINT_DATA"
    ):
        load(DataConfig(name=f"npz:{tmp_path / 'gone.npz'}"))


def test_a_truncated_file(write, tmp_path):
    config = write()
    whole = (tmp_path / "data.npz").read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "data.npz").write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"data.npz must be a readable .npz of plain arrays, but got .*; write it anew"
        ):
            load(config)


def test_a_damaged_compressed_file(tmp_path, arrays):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays)
    damaged = bytearray(path.read_bytes())
    for start in (60, 200, 500):
        damaged[start : start + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"data.npz must be a readable .npz of plain arrays"):
        load(DataConfig(name=f"npz:{path}"))


def test_a_single_array_under_the_name_of_an_npz(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"data.npz must be an .npz of plain arrays, but got a single array"):
        load(DataConfig(name=f"npz:{tmp_path / 'data.npz'}"))


def test_nothing_is_unpickled(write, tmp_path, trap, trapped):
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(trapped))
    objects = np.empty(60, dtype=object)
    objects[:] = [trapped] * 60
    for config in (DataConfig(name=f"npz:{tmp_path / 'pickle.npz'}"), write(y_train=objects)):
        with pytest.raises(DataError, match=r"must be a readable .npz of plain arrays, but got .*pickle"):
            load(config)
    assert not trap()


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.linspace(-0.1, 1, 192), r"float64 in \[-0.1, 1\]"),
        (np.linspace(0, 255, 192), r"float64 in \[0, 255\]"),
        (np.full(192, np.nan), r"float64 in \[nan, nan\]"),
        (np.zeros(192, dtype=np.int64), "int64"),
        (np.zeros(192, dtype=bool), "bool"),
        (np.full(192, "a"), "<U1"),
        (np.zeros(192, dtype=complex), "complex128"),
    ],
)
def test_images_that_are_none(write, values, seen):
    rule = r"images must be uint8, or floats in \[0, 1\]"
    with pytest.raises(DataError, match=f"{rule}, but got {seen}; rescale them; normalisation belongs to the model"):
        load(write(x_test=values.reshape(12, 1, 4, 4)))


def test_unequal_lengths(write, arrays):
    with pytest.raises(
        DataError, match="x_test and y_test must be equally long and not empty, but got 12 and 11; mend"
    ):
        load(write(y_test=arrays["y_test"][:11]))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("x_train", np.uint8(3)),
        ("y_train", np.int64(3)),
        ("y_train", np.zeros((60, 1), dtype=int)),
        ("x_train", np.zeros(60, dtype=np.uint8)),
        ("x_test", np.zeros((12, 16), dtype=np.uint8)),
        ("x_test", np.zeros((0, 1, 4, 4), dtype=np.uint8)),
    ],
)
def test_arrays_of_the_wrong_shape(write, name, array):
    part = name[2:]
    with pytest.raises(
        DataError, match=rf"x_{part} must hold images, all of one shape, and y_{part} one label each, but"
    ):
        load(write(**{name: array}))


@pytest.mark.parametrize("labels", [np.linspace(0, 2, 60), np.arange(60) % 3 - 1, np.array(["a", "b", "c"] * 20)])
def test_labels_that_are_no_classes(write, labels):
    with pytest.raises(DataError, match=r"labels must be integers from 0, but got .*; encode the classes as 0, 1, 2"):
        load(write(y_train=labels))


def test_a_class_with_one_sample(write):
    with pytest.raises(
        DataError,
        match=r"each class must have two training samples or more, .* but got 60 samples of 3 classes, the smallest of 1",
    ):
        load(write(y_train=np.array([0] * 30 + [1] * 29 + [2])))


# --- groups of labels ------------------------------------------------------------------------------------------------


def test_groups_of_labels_are_new_classes(digits):
    """The images and their split stay; only what they are called changes."""
    groups = ((1, 3, 5, 7, 9), (0, 2), (4, 6, 8))
    grouped = load(DataConfig(group_labels=groups))
    assert grouped.classes == 3
    for (x, y), (x_before, y_before) in zip(parts(grouped).values(), parts(digits).values(), strict=True):
        assert torch.equal(x, x_before)
        assert y.tolist() == [
            next(i for i, group in enumerate(groups) if label in group) for label in y_before.tolist()
        ]
        assert y.dtype == torch.int64
    assert load(DataConfig(group_labels=[[9], *[[k] for k in range(9)]])).y_test.tolist() == [
        (label + 1) % 10 for label in digits.y_test.tolist()
    ]


def test_groups_of_labels_of_a_file_and_its_limits(write, arrays):
    data = load(write().model_copy(update={"group_labels": ((0, 2), (1,)), "limit_test": 5}))
    assert (data.classes, data.y_test.tolist()) == (2, [0, 1, 0, 0, 1])
    assert np.bincount(data.y_validation.numpy()).tolist() == [6, 3]  # by the labels that were, as without groups


@pytest.mark.parametrize(
    "groups",
    [[], [[0, 1, 2]], [[0, 1], []], [[0, 1], [1, 2]], [[0, 0], [1]], [[0, 1], [3]], [[1], [2]], [[-1, 0], [1]]],
)
def test_groups_that_are_none(groups):
    rule = "group_labels must be two groups or more, none empty, with each label from 0 on in exactly one"
    with refused(
        ConfigError,
        f"the data, group_labels: {rule}, but got {groups}; write for example [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]].",
    ):
        validate(DataConfig, {"group_labels": groups}, "the data")


@pytest.mark.parametrize("groups", [((0,), (1,)), ((0, 1), (2, 3))])
def test_groups_of_other_labels_than_the_data_s(write, groups):
    config = write().model_copy(update={"group_labels": groups})
    last = max(map(max, groups))
    with refused(
        ConfigError,
        f"data.group_labels must have each label of {config.name} once, 0 ... 2, but got 0 ... {last}; "
        "list them all, and no others.",
    ):
        load(config)


@pytest.mark.parametrize("name", ["imagefolder:here", "imagenet:here", "huggingface:here"])
def test_groups_are_for_data_in_memory(name):
    rule = "data.group_labels is for data held in memory"
    with refused(ConfigError, f"{rule}, but got {name}; leave it out, or sort the images into other folders."):
        load(DataConfig(name=name, group_labels=[[0], [1]]))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_named_files_need_the_folder(monkeypatch, name):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    with pytest.raises(
        ConfigError,
        match=f"the data set '{name}' is read from the folder that PINCHPOINT_DATA names, but got no PINCHPOINT_DATA; "
        f"set PINCHPOINT_DATA to a folder with {name}.npz, or use torchvision:{name.upper()}",
    ):
        load(DataConfig(name=name))


def test_named_files_come_from_the_folder(monkeypatch, tmp_path, arrays):
    monkeypatch.setenv("PINCHPOINT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"a data file must exist, but got .*mnist.npz"):
        load(DataConfig(name="mnist"))
    np.savez(tmp_path / "mnist.npz", **arrays)
    data = load(DataConfig(name="mnist"))
    assert (data.name, data.classes) == ("mnist", 3)


@pytest.mark.parametrize("name", ["", "Digits", "imagenet", "npz:", "torchvision:", "torchvision:ImageNet", "csv:a"])
def test_unknown_names(name):
    with pytest.raises(
        DataError,
        match=r"a data set must be known by name, but got .*; use digits, mnist, cifar10, cifar100, npz:PATH, "
        "imagefolder:PATH, imagenet:PATH, huggingface:PATH or "
        "torchvision:NAME with NAME in MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN",
    ):
        load(DataConfig(name=name))


@pytest.mark.parametrize(
    "options",
    [
        {"test_share": 0},
        {"validation_share": 1},
        {"limit_train": 0},
        {"split_seed": -1},
        {"split_seed": 2**32},
        {"x": 1},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        DataConfig(**options)


def test_real_mnist(real_data, monkeypatch):
    monkeypatch.setenv("PINCHPOINT_DATA", str(real_data))
    data = load(DataConfig(name="mnist", limit_train=500, limit_test=40))
    assert (data.classes, data.input_shape) == (10, (1, 28, 28))
    assert (len(data.y_train), len(data.y_validation), len(data.y_test)) == (425, 75, 40)
    with np.load(real_data / "mnist.npz") as file:
        np.testing.assert_allclose(data.x_test.numpy(), file["x_test"][:40] / 255, atol=1e-7)
        assert data.y_test.tolist() == file["y_test"][:40].tolist()
    assert data.y_test.tolist()[:5] == [7, 2, 1, 0, 4]  # as everybody's first five
