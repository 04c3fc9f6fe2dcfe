"""Files that mean harm: each is refused in one sentence, nothing in it is run, little memory taken, nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.data.config import NPZ_NAMES
from pinchpoint.errors import CheckpointError, DataError, ModelError, PinchpointError
from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet
from pinchpoint.models.sources.open_model import fitting, open_model
from pinchpoint.models.weights import read_tensors

MEGABYTES = 200


def _peak(anew: bool = False) -> float:
    """The most memory this process has held, in megabytes; since now, where ``anew``. 0 where Linux does not tell."""
    counters, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not counters.exists():
        return 0.0
    if anew:
        counters.write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


def test_the_peak_of_memory_is_seen():
    if _peak() > 0:
        before = _peak(anew=True)
        np.ones(5 * MEGABYTES * 2**18, dtype=np.uint8)
        assert _peak() - before > MEGABYTES


@contextlib.contextmanager
def harmless(folder, kind=PinchpointError, match="."):
    """The block is refused in one sentence; nothing in the folder changes and the peak of memory hardly grows."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    start = _peak(anew=True)
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert _peak() - start < MEGABYTES


# --- models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".th", ".pt2", ".safetensors"])
@pytest.mark.parametrize("by_torch", [True, False])
def test_a_pickle_under_any_name(tmp_path, trap, trapped, suffix, by_torch):
    path = tmp_path / f"net{suffix}"
    if by_torch:
        torch.save({"conv1.weight": trapped}, path)
    else:
        path.write_bytes(pickle.dumps(trapped))
    with harmless(tmp_path, CheckpointError):
        open_model(str(path))
    assert not trap()


def safetensors(path, header, numbers=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path


def entry(shape=(2, 2), dtype="F32", offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": entry()}, 2**63),
        ({"a": entry()}, 10**9),
        ({"a": entry((2**40, 2**40))}, None),
        ({"a": entry((2**32, 2**32, 0))}, None),
        ({"a": entry(offsets=(0, 2**62))}, None),
        ({"a": entry(offsets=(16, 0))}, None),
        ({"a": entry(offsets=(-16, 0))}, None),
        ({"a": entry(dtype="F64")}, None),
        ({"a": entry(dtype="NONE")}, None),
        ({"a": entry(), "b": entry()}, None),
        ({"a": entry(), "b": entry(offsets=(8, 24))}, None),
        ({"a": entry(offsets=(16, 32))}, None),
        ({"a": {"shape": [2, 2]}}, None),
        (b"[" * 10**6, None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_headers_that_lie(tmp_path, header, length):
    path = safetensors(tmp_path / "net.safetensors", header, b"\0" * 32, length)
    with harmless(tmp_path, CheckpointError):
        open_model(str(path))


def test_the_honest_header_is_read(tmp_path):
    path = safetensors(tmp_path / "net.safetensors", {"a": entry(), "b": entry(offsets=(16, 32))}, b"\0" * 32)
    assert list(read_tensors(path)[0]) == ["a", "b"]


@pytest.mark.long
def test_tensors_of_a_few_numbers_that_claim_to_be_large(tmp_path):
    """A network built to fit them would fill the memory."""
    names = cifar_resnet(Architecture(8, 4, 3, 5)).state_dict()
    path = tmp_path / "net.pth"
    with torch.device("meta"):
        wide = cifar_resnet(Architecture(8, 10**6, 3, 5)).state_dict()
    assert wide.keys() == names.keys()
    for state in (
        {name: torch.zeros(()).expand(tensor.shape) for name, tensor in wide.items()},
        wide,
        {"a": torch.sparse_coo_tensor([[0]], [1.0], (10**12,))},
    ):
        torch.save(state, path)
        with harmless(tmp_path, CheckpointError, "must hold plain tensors with all their numbers"):
            open_model(str(path))
    torch.save(dict.fromkeys((f"a{number}" for number in range(2000)), torch.zeros(10**5)), path)
    with harmless(tmp_path, CheckpointError, "must hold the numbers of its tensors, but got 800000000 bytes"):
        open_model(str(path))


def test_a_packed_file_of_weights(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"a": torch.zeros(10)}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, b"\0" * 2 * 10**8 if name.endswith("data/0") else whole.read(name))
    with harmless(tmp_path, CheckpointError, "parts that are longer than the file"):
        open_model(str(path))


def test_a_checkpoint_that_is_a_pickle(tmp_path, trap, trapped):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(trapped))
    with harmless(tmp_path, CheckpointError):
        open_model(str(tmp_path))
    assert not trap()


# --- arrays ---------------------------------------------------------------------------------------------------------------


def packed(path, declared=None, **arrays):
    """An .npz, with a header of another shape for some arrays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as out:
                shape = (declared or {}).get(name, array.shape)
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for part in np.array_split(array, max(1, array.nbytes // 10**7)):
                    out.write(part.tobytes())
    return DataConfig(name=f"npz:{path}")


def test_arrays_as_they_should_be(tmp_path, arrays):
    data = load(packed(tmp_path / "a.npz", **arrays))
    assert (data.classes, data.class_names, len(data.x_test)) == (3, None, 12)


@pytest.mark.parametrize(
    "shape", [(10**12, 1, 4, 4), (60, 10**6, 10**6, 4), (2**40, 2**40), (-60, 1, 4, -4), (59, 1, 4, 4)]
)
def test_arrays_that_say_they_are_larger(tmp_path, arrays, shape):
    config = packed(tmp_path / "a.npz", {"x_train": shape}, **arrays)
    with harmless(tmp_path, DataError, r"must be a readable .npz of plain arrays, but got x_train of shape"):
        load(config)


def test_a_zip_bomb(tmp_path, arrays):
    arrays["x_train"] = np.broadcast_to(np.uint8(0), (60, 3, 1500, 1500))  # 405 MB of zeros
    config = packed(tmp_path / "bomb.npz", **arrays)
    assert (tmp_path / "bomb.npz").stat().st_size < 3 * 10**6
    with harmless(
        tmp_path, DataError, "must hold images, which cannot be packed so tightly, but got x_train, 405000128"
    ):
        load(config)


def test_arrays_larger_than_the_memory_they_may_take(tmp_path, arrays):
    config = packed(tmp_path / "a.npz", **arrays).model_copy(update={"memory_gb": 5e-6})
    with harmless(tmp_path, DataError, "the arrays in a.npz may take 5e-06 GB in memory, but got 5.18e-06 GB; make it"):
        load(config)
    assert load(config.model_copy(update={"memory_gb": 6e-6})).classes == 3


def test_a_zip_that_lies_about_its_parts(tmp_path, arrays):
    """The archive says an array is as small as its header says; what is packed in it is larger."""
    path = tmp_path / "a.npz"
    config = packed(path, **arrays)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("x_train.npy")
    data = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = data.compress(b"\0" * 10**8) + data.flush()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            if name == "x_train":
                file.writestr("x_train.npy", content)
            else:
                with file.open(f"{name}.npy", "w") as out:
                    np.lib.format.write_array(out, array)
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"x_train.npy") - 46
    whole[at + 10 : at + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    whole[at + 24 : at + 28] = struct.pack("<I", info.file_size)
    whole[8:10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    path.write_bytes(whole)
    with harmless(tmp_path, DataError, "must be a readable .npz of plain arrays"):
        load(config)


def test_python_objects_among_the_arrays(tmp_path, arrays, trap, trapped):
    objects = np.empty(60, dtype=object)
    objects[:] = [trapped] * 60
    for changes in ({"y_train": objects}, {"classes": objects[:3]}):
        np.savez(tmp_path / "a.npz", **(arrays | changes))
        config = DataConfig(name=f"npz:{tmp_path / 'a.npz'}")
        if "classes" in changes:
            assert load(config).class_names is None  # it is not looked at
        else:
            with harmless(tmp_path, DataError, "y_train of Python objects, which would have to be unpickled"):
                load(config)
    assert not trap()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y_train": np.arange(59) % 3}, "x_train and y_train must be equally long and not empty, but got 60 and 59"),
        ({"y_train": np.arange(60) % 3 - 1}, "labels must be integers from 0, but got -1 in the training labels"),
        ({"y_test": np.array([0.5] * 12)}, "labels must be integers from 0, but got float64"),
        ({"y_train": np.append(np.arange(59) % 3, 10**12)}, "labels must be below 1000000, but got 1000000000000"),
        (
            {"y_test": np.array([0] * 11 + [2**64 - 1], dtype=np.uint64)},
            "labels must be below 1000000, but got ",
        ),
        (
            {"classes": np.array(["a", "b"])},
            "each class must have its name, where any has, but got 2 names and the label 2",
        ),
        (
            {"x_test": np.full((12, 1, 4, 4), np.nan)},
            r"images must be uint8, or floats in \[0, 1\], but got float64 in \[nan",
        ),
        (
            {"x_test": np.full((12, 1, 4, 4), np.inf)},
            r"images must be uint8, or floats in \[0, 1\], but got float64 in \[inf",
        ),
    ],
)
def test_labels_and_pixels_that_make_no_sense(tmp_path, arrays, changes, text):
    np.savez(tmp_path / "a.npz", **(arrays | changes))
    with harmless(tmp_path, DataError, text):
        load(DataConfig(name=f"npz:{tmp_path / 'a.npz'}"))


def test_more_classes_than_logits(tmp_path, few):
    path = tmp_path / "net.safetensors"
    save_file(cifar_resnet(Architecture(8, 4, 1, 2)).state_dict(), path)
    with refused(
        ModelError,
        f"the model needs a logit for each of the 3 classes of {few.name}, but got 2 logits; choose the data it was trained "
        "on.",
    ):
        fitting(open_model(str(path), few.input_shape), few)


# --- images ---------------------------------------------------------------------------------------------------------------


def bomb(path, width, height):
    """A PNG whose header says how large it is, and little more."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("width", "height"), [(32_000, 32_000), (10**9, 1), (2**31 - 1, 2**31 - 1), (9_000, 9_000)])
@pytest.mark.parametrize("size", [None, 8])
def test_an_image_of_a_thousand_million_pixels(tmp_path, width, height, size):
    for name in ("cat", "dog"):
        bomb(tmp_path / name / "0.png", width, height)
    with harmless(tmp_path, DataError, "an image may have 67108864 pixels at most"):
        load(DataConfig(name=f"imagefolder:{tmp_path}", image_size=size, workers=0)).test.tensors()


def test_such_an_image_in_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    image = {"bytes": bomb(tmp_path / "0.png", 32_000, 32_000).read_bytes(), "path": None}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "<b>"]))
    table = datasets.Dataset.from_dict({"image": [image] * 2, "label": [0, 1]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    with harmless(tmp_path, DataError, "an image may have 67108864 pixels at most"):
        load(DataConfig(name=f"huggingface:{tmp_path / 'saved'}", workers=0))


def test_labels_beyond_the_classes_of_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    content = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 10**12]}
    datasets.Dataset.from_dict(content).save_to_disk(tmp_path / "saved")
    with harmless(tmp_path, DataError, "labels must be below 1000000, but got 1000000000000 in "):
        load(DataConfig(name=f"huggingface:{tmp_path / 'saved'}", workers=0))


@pytest.mark.parametrize("folders", [[], ["cat"], ["cat", "dog"], ["train/cat", "val/cat"]])
def test_folders_without_an_image(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with harmless(tmp_path, DataError, "must hold"):
        load(DataConfig(name=f"imagefolder:{tmp_path}", workers=0))


# --- names ----------------------------------------------------------------------------------------------------------------

NAMES = ("<b>cat</b>", "dög 犬")


def test_spaces_unicode_and_markup_in_names(tmp_path, arrays):
    root = tmp_path / "ünïcode and spaces ✓"
    for name in NAMES:
        folder = root / "images" / name.replace("/", "")
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"nö {number}.png")
    data = load(DataConfig(name=f"imagefolder:{root / 'images'}", workers=0, test_share=0.5, validation_share=0.5))
    assert data.class_names == ("<b>cat<b>", "dög 犬")
    assert data.test.tensors()[0].shape == (4, 3, 4, 4)
    np.savez(root / "a b.npz", **arrays, classes=np.array([*NAMES, "bird", "never seen"]))
    config = DataConfig(name=f"npz:{root / 'a b.npz'}")
    assert load(config).class_names == (*NAMES, "bird")
    assert load(config.model_copy(update={"group_labels": ((0, 1), (2,))})).class_names is None
    network = cifar_resnet(Architecture(8, 4, 3, 5)).eval()
    save_file(network.state_dict(), root / "nét.safetensors")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(open_model(str(root / "nét.safetensors")).model(x), network(x))


def test_a_folder_whose_name_is_no_text(tmp_path):
    for name in (b"cat", b"\xff\xfe"):
        folder = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 (bytes)
        os.mkdir(folder)  # noqa: PTH102
        Image.new("RGB", (4, 4)).save(os.fsdecode(os.path.join(folder, b"0.png")))  # noqa: PTH118
    assert load(DataConfig(name=f"imagefolder:{tmp_path}", workers=0)).class_names == ("cat", "\ufffd\ufffd")


def test_names_of_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    content = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "saved")
    assert load(DataConfig(name=f"huggingface:{tmp_path / 'saved'}", workers=0)).class_names == NAMES


def test_names_of_the_real_data(real_data, monkeypatch):
    monkeypatch.setenv("PINCHPOINT_DATA", str(real_data))
    named = {
        name: load(DataConfig(name=name, limit_train=3000, limit_test=10)).class_names
        for name in NPZ_NAMES
        if name != "mnist"
    }
    assert named["cifar10"][:2] == ("airplane", "automobile")
    assert len(named["cifar100"]) == 100
