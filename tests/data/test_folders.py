"""Image files: what comes back, against Pillow and torchvision; hostile files, by the sentence they are refused with."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.data.decode import decode
from pinchpoint.data.listing import Encoded, Geometry
from pinchpoint.errors import ConfigError, DataError, PinchpointWarning

CPU = torch.device("cpu")
HALVES = {"test_share": 0.5, "validation_share": 0.5}


def picture(path: Path, size=(6, 4), seed=0, mode="RGB"):
    """Writes a noisy image, smooth enough that resizing it is a fair test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def fill(root, classes="cab", images=4, size=(6, 4)):
    """Classes of numbered images, written in another order than that of their names."""
    for rank, name in enumerate(classes):
        for number in range(images):
            picture(root / name / f"{number}.png", size, seed=100 * rank + number)
    return root


def pixels(path):
    """As floats, channels first, by Pillow alone."""
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255


def opened(root, **options):
    return load(DataConfig(**{"name": f"imagefolder:{root}", "workers": 0, **HALVES, **options}))


def samples(part):
    """Everything in a part, as (label, bytes of the image)."""
    x, y = part.tensors()
    return sorted(
        (int(label), image.mul(255).round().byte().numpy().tobytes()) for image, label in zip(x, y, strict=True)
    )


# --- parts -----------------------------------------------------------------------------------------------------------


def test_train_and_val_are_training_and_test(tmp_path):
    fill(tmp_path / "train", images=8)
    fill(tmp_path / "val", images=2)
    data = opened(tmp_path, validation_share=0.25)
    assert (data.classes, data.input_shape) == (3, (3, 4, 6))
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    expected = {part: [] for part in ("train", "val")}
    for part, found in expected.items():
        for label, name in enumerate("abc"):  # the rank of the name, not the order of writing
            found += [(label, Image.open(path).tobytes()) for path in (tmp_path / part / name).iterdir()]
    channels_last = [
        sorted(
            (label, np.frombuffer(raw, np.uint8).reshape(3, 4, 6).transpose(1, 2, 0).tobytes()) for label, raw in found
        )
        for found in (samples(data.train) + samples(data.validation), samples(data.test))
    ]
    assert channels_last == [sorted(expected["train"]), sorted(expected["val"])]


def test_val_beside_test_is_for_validation(tmp_path):
    for part, images in (("train", 3), ("val", 2), ("test", 1)):
        fill(tmp_path / part, images=images)
    data = opened(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 6, 3]


@pytest.mark.parametrize("folder", ["", "train"])
def test_one_folder_is_split(tmp_path, folder):
    fill(tmp_path / folder, images=8)
    data, again, other = (opened(tmp_path, test_share=0.25, split_seed=seed) for seed in (0, 0, 1))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 9, 6]
    every = samples(data.train) + samples(data.validation) + samples(data.test)
    assert len(set(every)) == 24
    assert samples(data.test) == samples(again.test) != samples(other.test)


def test_one_image_a_class_is_a_test_set(tmp_path):
    data = opened(fill(tmp_path, images=1))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [0, 0, 3]
    assert data.train.labels.tolist() == []
    text = (
        f"a training part needs images beside those of the test part, but got none in imagefolder:{tmp_path}; "
        "give it folders train and val, or two images and more of each class."
    )
    for use in (lambda: data.x_train, lambda: data.validation.batches([torch.arange(0)], CPU)):
        with refused(DataError, text):
            use()


def test_limits_take_one_image_of_each_class_in_turn(tmp_path):
    fill(tmp_path / "train", images=8)
    fill(tmp_path / "val", images=2)
    data = opened(tmp_path, limit_train=12, limit_test=4)
    assert data.y_test.tolist() == [0, 1, 2, 0]
    assert np.bincount(torch.cat([data.y_train, data.y_validation])).tolist() == [4, 4, 4]
    assert opened(tmp_path, limit_test=2).classes == 3  # of the whole data set, whatever the limits leave


def test_folders_in_class_folders_and_links(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "a")
    root = fill(tmp_path / "data", "b", images=3)
    picture(root / "b" / "images" / "deep" / "4.JPEG")
    (root / "a").symlink_to(elsewhere / "a")
    (root / "b" / "5.png").symlink_to(root / "b" / "0.png")
    (root / "b" / ".DS_Store").write_bytes(b"hidden")
    (root / ".git").mkdir()
    (root / "README.txt").write_text("beside the classes")
    with pytest.warns(PinchpointWarning, match=rf"^1 file or hidden folder is left out .*: {root}/README.txt$"):
        data = opened(root)
    assert (data.classes, len(data.train) + len(data.validation) + len(data.test)) == (2, 9)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_batches_are_the_rows_asked_for_whatever_the_workers(tmp_path, workers):
    fill(tmp_path, images=6)
    data = opened(tmp_path, workers=workers)
    x = data.x_test
    order = torch.tensor([8, 0, 3, 3, 1, 7, 2])
    rng = torch.random.get_rng_state()
    batches = list(data.test.batches(order.split(2), CPU))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [len(labels) for _, labels in batches] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), x[order])
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.y_test[order])
    assert batches[0][0].dtype == torch.float32
    assert list(data.test.batches([], CPU)) == []


@pytest.mark.long
def test_errors_of_workers_are_ours(tmp_path):
    fill(tmp_path)
    broken = tmp_path / "a" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = opened(tmp_path, workers=2, image_size=4)
    with pytest.raises(
        DataError, match=rf"^an image file must be a whole image, but got {broken} \(.+\); replace it or"
    ):
        _ = [data.x_test, *data.train.batches([torch.arange(3)], CPU), data.x_validation]


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    data = opened(fill(tmp_path, images=10, size=(20, 20)), memory_gb=2e-5)
    with refused(
        DataError,
        "images held in memory may take 2e-05 GB, but got 7.2e-05 GB for 15 of 3x20x20; "
        "set data.limit_test to 4 or less, or raise data.memory_gb.",
    ):
        _ = data.x_test
    x, y = data.test.tensors(4)
    assert (x.shape, y.tolist()) == ((4, 3, 20, 20), [0, 1, 2, 0])


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    np.testing.assert_array_equal(decode(Encoded(str(path))).numpy() / 255, pixels(path))
    content = path.read_bytes()
    np.testing.assert_array_equal(decode(Encoded("nowhere", content)).numpy() / 255, pixels(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "tif"])
def test_formats(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}", (31, 17))
    np.testing.assert_array_equal(decode(Encoded(str(path))).numpy() / 255, pixels(path))


@pytest.mark.parametrize("shape", [(40, 31), (31, 40), (24, 24), (7, 9), (33, 33)])
@pytest.mark.parametrize(("size", "resize"), [(24, 24), (24, 27), (5, 8)])
def test_resizing_is_torchvisions(tmp_path, shape, size, resize):
    from pinchpoint.utils.torchvision import import_torchvision

    import_torchvision()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    path = picture(tmp_path / "a.png", shape)
    theirs = Compose([Resize(resize, InterpolationMode.BICUBIC), CenterCrop(size)])(Image.open(path))
    ours = decode(Encoded(str(path)), Geometry(size, size, resize))
    np.testing.assert_array_equal(ours.permute(1, 2, 0), np.asarray(theirs))


def test_sizes_of_a_data_set(tmp_path):
    fill(tmp_path, size=(9, 5))
    assert opened(tmp_path).input_shape == (3, 5, 9)
    assert opened(tmp_path, image_size=4).x_test.shape == (6, 3, 4, 4)
    assert opened(tmp_path, image_size=4, resize=6).x_test.shape == (6, 3, 4, 4)
    for number in range(4):
        picture(tmp_path / "c" / f"{number}.png", (5, 9))
    with pytest.raises(
        DataError,
        match=r"^images must all have one size, 9x5 as the first, but got 5x9 in .*/c/\d.png; set data.image_size, for",
    ):
        _ = opened(tmp_path).x_test
    with refused(ConfigError, "data.resize must be data.image_size (8) or more, but got 6; make it larger."):
        opened(tmp_path, image_size=8, resize=6)
    with refused(ConfigError, "data.resize needs data.image_size, but got none; give both."):
        opened(tmp_path, resize=6)
    with refused(
        ConfigError,
        "data.image_size and data.resize are for imagefolder, imagenet, huggingface, but got digits; leave them out.",
    ):
        load(DataConfig(image_size=8))


# --- hostile files ---------------------------------------------------------------------------------------------------


def chunk(kind, content):
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height):
    """The header of a PNG of that size, and next to nothing behind it."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(50_000, 20_000), (10_000, 9_000), (67_108_865, 1)])
def test_images_too_large_to_decode(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(width, height))
    with pytest.raises(
        DataError,
        match=rf"^an image may have 67108864 pixels at most, but got {path} \(.+\); replace it or take it away",
    ):
        decode(Encoded(str(path)))


def test_images_too_long_to_resize(tmp_path):
    path = picture(tmp_path / "thread.png", (400_000, 1))
    with pytest.raises(
        DataError, match=r"67108864 pixels at most, but got .*thread.png \(400000x1, resized 89600000x224"
    ):
        decode(Encoded(str(path)), Geometry(224, 224, 224))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_files_cut_short(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}", (64, 48))
    whole = path.read_bytes()
    for length in (0, 1, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=rf"^an image file must be a whole image, but got {path} \(.+\); replace it"
        ):
            decode(Encoded(str(path)))


@pytest.mark.parametrize("content", [b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"])
def test_what_is_no_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"^an image file must be a whole image, but got .*a.png \(cannot identify image"
    ):
        decode(Encoded(str(path)))


def grey_tiff(values, order, photometric, bits=16):
    """An uncompressed TIFF of one strip of grey, its bytes written here (TIFF 6.0, sections 2 and 4)."""
    mark, sign = {"little": (b"II", "<"), "big": (b"MM", ">")}[order]
    raw = values.astype(f"{sign}u2").tobytes()
    height, width = values.shape
    if bits == 12:  # two values in three bytes, the first bits first
        raw = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in values.astype(int).reshape(-1, 2))
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(raw)}
    entries = b"".join(struct.pack(f"{sign}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{sign}H", len(tags)) + entries + struct.pack(f"{sign}I", 0)
    return mark + struct.pack(f"{sign}HI", 42, 8 + len(raw)) + raw + directory


SIXTEEN = np.array([[0, 1, 128, 129], [257, 32_767, 32_768, 40_000], [65_000, 65_406, 65_534, 65_535]], dtype=np.uint16)


def sixteen_bits(kind):
    """A file with the values of SIXTEEN in grey."""
    if kind == "png":
        buffer = io.BytesIO()
        Image.fromarray(SIXTEEN).save(buffer, "PNG")
        return buffer.getvalue()
    if kind == "pgm":
        return b"P5\n4 3\n65535\n" + SIXTEEN.astype(">u2").tobytes()
    if kind == "white is zero":
        return grey_tiff(65_535 - SIXTEEN, "little", 0)
    return grey_tiff(SIXTEEN, kind.removeprefix("tiff "), 1)


@pytest.mark.parametrize("kind", ["png", "pgm", "tiff little", "tiff big", "white is zero"])
def test_sixteen_bits_become_the_nearest_of_eight(kind):
    content = sixteen_bits(kind)
    wanted = np.rint(SIXTEEN.astype(float) / 65_535 * 255)
    assert wanted.max() == 255
    np.testing.assert_array_equal(decode(Encoded("a", content)).numpy(), np.broadcast_to(wanted, (3, 3, 4)))


def test_twelve_bits_are_scaled_by_their_own_white():
    values = np.array([[0, 1, 2_000, 4_095]])
    decoded = decode(Encoded("a", grey_tiff(values, "little", 1, bits=12)))
    np.testing.assert_array_equal(decoded[0], np.rint(values / 4_095 * 255))


def test_sixteen_bits_of_colour():
    """Pillow takes the upper byte: at most one of 255 below or above the nearest."""
    rows = np.random.default_rng(0).integers(0, 65_536, (5, 7, 3)).astype(np.uint16)
    rows[0, 0], rows[0, 1] = 0, 65_535
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    decoded = decode(Encoded("a", content)).permute(1, 2, 0).numpy()
    assert np.abs(decoded / 255 - rows / 65_535).max() <= 1 / 255
    assert (decoded[0, 0].tolist(), decoded[0, 1].tolist()) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_scale_are_refused(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new(mode, (4, 4), 7).save(path)
    with refused(
        DataError,
        f"an image must have 8 bits a channel, or 16 without a sign, but got {path} of mode {mode}; convert it.",
    ):
        decode(Encoded(str(path)))


def test_palettes_with_transparency(tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("P")
    image.save(path, transparency=bytes(range(256)))
    colours = np.array(image.getpalette()).reshape(-1, 3)
    decoded = decode(Encoded(str(path))).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(decoded, colours[np.asarray(image)])


def test_sixteen_bits_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SIXTEEN).save(tmp_path / "a.png", exif=exif)
    wanted = np.rot90(np.rint(SIXTEEN.astype(float) / 65_535 * 255), -1)
    np.testing.assert_array_equal(decode(Encoded(str(tmp_path / "a.png")))[0], wanted)


def hostile(root, kind):
    """What is wrong, and how it is named."""
    inside = root / "a"
    if kind == "empty":
        (root / "empty").mkdir()
        return "a class folder must hold images, but got none in", "/empty; fill it or take it away."
    if kind == "text":
        (inside / "notes.txt").write_text("a note")
        return "a class folder must hold image files only", "/a/notes.txt; take it away."
    if kind == "loop":
        (inside / "again").symlink_to(inside)
        return "folders of images may not contain themselves, but got", "/a/again; take the link away."
    if kind == "loop above":
        (inside / "up").symlink_to(root)
        return "folders of images may not contain themselves, but got", "/a/up/a; take the link away."
    if kind == "self":
        (inside / "me.png").symlink_to(inside / "me.png")
        return "links must lead to files or folders, but got", "/a/me.png'; take it away."
    if kind == "broken":
        (inside / "gone.png").symlink_to(inside / "nothing")
        return "a class folder must hold image files only", "/a/gone.png; take it away."
    os.mkfifo(inside / "pipe.png")  # opening it would wait for ever
    return "a class folder must hold image files only", "/a/pipe.png; take it away."


@pytest.mark.parametrize("kind", ["empty", "text", "loop", "loop above", "self", "broken", "pipe"])
def test_hostile_folders(tmp_path, kind):
    begins, ends = hostile(fill(tmp_path / "data", images=2), kind)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "data")
    assert str(caught.value).startswith(begins)
    assert str(caught.value).endswith(ends)


def test_folders_without_classes(tmp_path):
    with refused(DataError, f"a folder of images must be there, but got {tmp_path}/gone; check the path."):
        opened(tmp_path / "gone")
    picture(tmp_path / "0.png")
    with refused(
        DataError, f"a folder of images must hold one folder a class, but got none in {tmp_path}; sort the images."
    ):
        opened(tmp_path)


def test_parts_with_other_classes(tmp_path):
    fill(tmp_path / "train", "abc")
    fill(tmp_path / "val", "ab")
    with refused(
        DataError,
        f"all parts of {tmp_path} must have the same classes, but got c in only one of train and validation; "
        "add or take away that folder.",
    ):
        opened(tmp_path)
    (tmp_path / "validation").mkdir()
    with pytest.raises(
        DataError, match=rf"^{tmp_path} may have one validation folder, but got .*val and .*validation;"
    ):
        opened(tmp_path)


# --- ImageNet --------------------------------------------------------------------------------------------------------


def test_imagenet(tmp_path):
    names = [f"n{9 * number:08d}" for number in range(1000)]
    source = picture(tmp_path / "0.png", (8, 8))
    for name in names:
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "0.png").symlink_to(source)
    config = DataConfig(name=f"imagenet:{tmp_path / 'data'}", workers=0)
    data = load(config)
    assert (data.classes, data.input_shape, len(data.test), len(data.train)) == (1000, (3, 224, 224), 1000, 0)
    assert data.y_test.tolist() == list(range(1000))
    (tmp_path / "data" / "val" / names[0]).rename(tmp_path / "data" / "val" / "cat")
    with pytest.raises(
        DataError, match=r"must hold the 1000 classes of ImageNet-1k, .* but got a folder cat; mend it, or"
    ):
        load(config)
    (tmp_path / "data" / "val" / "cat").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"val must hold the 1000 classes .* but got 999 folders; mend it, or use imagefol"
    ):
        load(config)


def test_the_real_sample_of_imagenet(real_data):
    root = real_data / "imagenet_samples"
    if not root.is_dir():
        pytest.skip("needs imagenet_samples in PINCHPOINT_DATA")
    data = opened(root, limit_test=5)
    names = sorted(path.name for path in root.iterdir())
    assert (data.classes, data.input_shape, len(data.train)) == (1000, (3, 240, 240), 0)
    for image, label in zip(data.x_test, data.y_test, strict=True):
        (path,) = (root / names[int(label)]).iterdir()
        np.testing.assert_allclose(image, pixels(path), atol=1e-7)


# --- names of parts, and what lies beside them -----------------------------------------------------------------------


@pytest.mark.parametrize(("training", "test"), [("Training", "Testing"), ("TRAIN", "eval"), ("train", "Test")])
def test_parts_by_any_usual_name(tmp_path, training, test):
    fill(tmp_path / training, images=4)
    fill(tmp_path / test, images=2)
    data = opened(tmp_path)
    assert data.classes == 3
    assert len(data.train) + len(data.validation) == 12
    assert len(data.test) == 6


@pytest.mark.parametrize("layout", ["images", "train/unlabeled/../../images", "0.png", "train/0.png", "train/test"])
def test_nothing_beside_parts_is_dropped_or_a_class(tmp_path, layout):
    fill(tmp_path / "train", images=4)
    target = tmp_path / layout
    if layout.endswith(".png"):
        picture(target)
    else:
        (tmp_path / "train" / "unlabeled").mkdir()
        fill(Path(os.path.normpath(target)), images=1)
        (tmp_path / "train" / "unlabeled").rmdir()
    with pytest.raises(DataError):
        opened(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_exif_says(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    rows, columns = stored.shape[:2]
    turned = {  # from the table of the EXIF standard: where row 0 and column 0 of what is stored are seen
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    assert turned.shape[:2] in {(rows, columns), (columns, rows)}
    np.testing.assert_array_equal(decode(Encoded(str(tmp_path / "a.png"))).permute(1, 2, 0), turned)
