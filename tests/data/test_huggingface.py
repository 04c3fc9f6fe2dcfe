"""Data sets that Hugging Face's datasets saved to disk."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError

datasets = pytest.importorskip(
    "datasets", reason="needs Hugging Face's datasets: pip install 'pinchpoint[huggingface]'"
)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(count)]


def table(count=12, seed=0, **columns):
    """Images and labels of three classes, sorted by class, and further columns."""
    content = {"image": pictures(count, seed), "label": np.repeat([0, 1, 2], count // 3).tolist()} | columns
    names = datasets.ClassLabel(names=["a", "b", "c"])
    return datasets.Dataset.from_dict(content).cast_column("label", names)


def opened(root, **options):
    config = {"name": f"huggingface:{root}", "workers": 0, "validation_share": 0.5, "test_share": 0.5}
    return load(DataConfig(**(config | options)))


def saved(root, **parts):
    datasets.DatasetDict(parts).save_to_disk(root)
    return root


def test_parts_images_and_labels(tmp_path):
    train, test = table(seed=1), table(6, seed=2)
    data = opened(saved(tmp_path, train=train, test=test))
    assert (data.classes, data.input_shape) == (3, (3, 5, 7))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 6, 6]
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2]  # in turn, though saved in order
    expected = np.stack([np.asarray(test[row]["image"]) for row in (0, 2, 4, 1, 3, 5)]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.x_test, expected / 255, atol=1e-7)
    every = torch.cat([data.x_train, data.x_validation])
    assert len({image.numpy().tobytes() for image in every}) == 12


@pytest.mark.long
def test_workers_read_the_same(tmp_path):
    root = saved(tmp_path, train=table(), test=table())
    alone, together = (opened(root, workers=workers) for workers in (0, 2))
    assert torch.equal(alone.x_train, together.x_train)


def test_one_table_is_split(tmp_path):
    table().select([11, *range(11)]).save_to_disk(tmp_path)  # with a mapping of indices
    data = opened(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 3, 6]


def test_a_part_without_labels_is_left_out(tmp_path):
    hidden = table(6).cast_column("label", datasets.Value("int64")).map(lambda row: {"label": -1})
    data = opened(saved(tmp_path, train=table(seed=1), validation=table(6), test=hidden))
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2]  # the validation part, as for ImageNet-1k
    assert len(data.validation) == 6


def test_which_column_is_asked_where_there_are_several(tmp_path):
    fine = list(range(6)) * 2
    rows = table(fine=fine).cast_column("fine", datasets.ClassLabel(num_classes=8)).rename_column("label", "coarse")
    root = saved(tmp_path, train=rows, test=rows)
    with refused(
        DataError,
        f"{root}/train must have one column of class labels, but got coarse, fine; name it by data.label_column.",
    ):
        opened(root)
    assert opened(root, label_column="fine").classes == 8
    assert opened(root, label_column="coarse").classes == 3
    with refused(
        DataError, f"{root}/train must have the column corse, but got image, coarse, fine; check data.label_column."
    ):
        opened(root, label_column="corse")


def test_plain_integers_called_label(tmp_path):
    rows = table().cast_column("label", datasets.Value("int32"))
    assert opened(saved(tmp_path, train=rows, test=rows)).classes == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.remove_columns("image"), "/train must have one column of images, but got none; save it"),
        (
            lambda rows: rows.map(lambda row: {"second": row["image"]}),
            "/train must have one column of images, but got image, s",
        ),
        (lambda rows: rows.remove_columns("label"), "/train must have one column of class labels, but got none; name"),
        (
            lambda rows: rows.cast_column("label", datasets.Value("float32")),
            "/train's column label must hold integers, but got float32; encode the classes.",
        ),
        (
            lambda rows: rows.cast_column("label", datasets.Value("int8")).map(lambda row: {"label": row["label"] - 1}),
            "/train must count from 0, but got -1; encode the classes anew.",
        ),
    ],
)
def test_columns_that_are_none(tmp_path, change, text):
    rows = change(table())
    root = saved(tmp_path, train=rows, test=rows)
    with pytest.raises(DataError) as caught:
        opened(root)
    assert text in str(caught.value)


def test_images_that_are_none(tmp_path):
    broken = io.BytesIO()
    pictures(1)[0].save(broken, "PNG")
    cases = (
        ({"bytes": broken.getvalue()[:70], "path": None}, "an image file must be a whole image, but got row 1 of "),
        ({"bytes": b"%!PS-Adobe-3.0", "path": None}, "an image file must be a whole image, but got row 1 of "),
        (
            {"bytes": None, "path": "https://example.com/a.png"},
            "must hold an image, but got https://example.com/a.png; ",
        ),
        ({"bytes": None, "path": None}, "must hold an image, but got nothing; save the data set with its images"),
        (None, "must hold an image, but got nothing; save the data set with its images"),
    )
    for number, (content, text) in enumerate(cases):
        good = {"bytes": broken.getvalue(), "path": None}
        plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        rows = datasets.Dataset.from_dict(
            {"image": [good, content, good, good], "label": [0, 1, 1, 0]},
            features=datasets.Features({"image": plain, "label": datasets.ClassLabel(num_classes=2)}),
        )
        root = saved(tmp_path / str(number), train=table(), test=rows)
        info = root / "test" / "dataset_info.json"  # images only now, as saving would fetch what is elsewhere
        described = json.loads(info.read_text())
        described["features"]["image"] = {"_type": "Image"}
        info.write_text(json.dumps(described))
        with pytest.raises(DataError) as caught:
            _ = opened(root).x_test
        assert text in str(caught.value)


def test_folders_that_are_none(tmp_path):
    with refused(DataError, f"a folder that datasets saved must be there, but got {tmp_path}/gone; check the path."):
        opened(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"^huggingface:PATH must be a folder that save_to_disk wrote, but got .*; save it"
    ):
        opened(tmp_path)
    root = saved(tmp_path / "odd", first=table(), second=table())
    with refused(
        DataError,
        f"{root} must have parts called train, training, val, valid, validation, dev, test, testing, eval, evaluation, "
        "and no others, but got first, second; rename them.",
    ):
        opened(root)
    (arrow,) = (root / "first").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"^huggingface:PATH must be a folder that save_to_disk wrote, but got .*; save it"
    ):
        opened(root)


def test_a_saved_format_is_set_aside(tmp_path):
    root = saved(tmp_path, train=table(), test=table(6))
    for state in root.glob("*/state.json"):
        content = json.loads(state.read_text())
        state.write_text(json.dumps(content | {"_format_type": "numpy", "_format_columns": ["label"]}))
    assert opened(root).x_test.shape == (6, 3, 5, 7)


def test_without_datasets(monkeypatch, tmp_path):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "datasets" else find(name))
    with refused(
        ConfigError,
        "huggingface:PATH needs datasets, but got an installation without it; pip install 'pinchpoint[huggingface]'.",
    ):
        opened(tmp_path)
