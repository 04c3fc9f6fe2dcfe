"""Recall in both directions against a naive ranking, and captions in the two layouts of Flickr30k."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from oracles.as_user import refused
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.models.clip import load_clip
from pinchpoint.models.retrieval import load_captions, recalls, retrieval
from pinchpoint.utils.torchvision import import_torchvision

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
NAMES = ("1.jpg", "2.jpg", "3.jpg")


def naive(images, texts, image_of, k):
    """Recall at k, query by query; of equal similarities the wrong ones come first."""
    similar = images @ texts.T
    found_images = 0
    for caption, own in enumerate(image_of):
        order = sorted(range(len(images)), key=lambda image: (-similar[image, caption], image == own))
        found_images += own in order[:k]
    found_texts = 0
    for image in range(len(images)):
        order = sorted(range(len(texts)), key=lambda caption: (-similar[image, caption], image_of[caption] == image))
        found_texts += any(image_of[caption] == image for caption in order[:k])
    return found_texts / len(images), found_images / len(texts)


@pytest.mark.parametrize("batch_size", [3, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_recall_is_that_of_a_naive_ranking_with_many_ties(seed, batch_size):
    rng = np.random.default_rng(seed)
    images = rng.integers(-1, 2, (13, 4)).astype(np.float64)
    image_of = rng.permutation(np.repeat(np.arange(13), 5))
    texts = np.where(rng.random((65, 4)) < 0.7, images[image_of], rng.integers(-1, 2, (65, 4)))
    tied = (images @ texts.T)[image_of, np.arange(65)][:, None] == (texts @ images.T)
    assert (tied.sum(1) > 1).mean() > 0.3  # many captions are as similar to another image as to theirs
    found = recalls(*map(torch.from_numpy, (images, texts, image_of)), ks=(1, 2, 5, 10, 65), batch_size=batch_size)
    for k in (1, 2, 5, 10, 65):
        assert (found.image_to_text[k], found.text_to_image[k]) == pytest.approx(naive(images, texts, image_of, k))
    assert 0 < found.text_to_image[1] < found.text_to_image[5] < found.text_to_image[65] == 1.0


def test_the_best_caption_of_an_image_counts_and_its_others_do_not_compete():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.8, 0.0], [0.85, 0.1], [0.0, 0.05]])
    found = recalls(images, texts, torch.tensor([0, 0, 0, 1, 1]), ks=(1, 2))
    assert found.image_to_text == {1: 1.0, 2: 1.0}
    assert found.text_to_image == {1: 0.8, 2: 1.0}


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_model_that_sees_nothing_finds_nothing(value):
    images, texts = torch.full((20, 3), value), torch.full((100, 3), value)
    found = recalls(images, texts, torch.arange(100) // 5)
    assert found.image_to_text == found.text_to_image == {1: 0.0, 5: 0.0, 10: 0.0}


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three images and two captions of each, in both layouts."""
    images = tmp_path / "flickr30k-images"
    images.mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.zeros((40, 50, 3), dtype=np.uint8)
        pixels[..., number] = 255
        Image.fromarray(pixels).save(images / name, quality=95)
    lines = [f"{name}#{place}\tCaption {place} of {name} ." for name in NAMES for place in range(2)]
    (tmp_path / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import_torchvision()
    open_clip = pytest.importorskip("open_clip")
    configs = tmp_path_factory.mktemp("configs")
    (configs / "tiny-retrieval.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(configs)
    return load_clip("tiny-retrieval")


def karpathy(folder, **changes):
    content = [
        {"filename": name, "split": split, "sentences": [{"raw": f"Caption {place} of {name} ."} for place in range(2)]}
        | changes
        for name, split in zip(NAMES, ("test", "train", "test"), strict=True)
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": content, "dataset": "flickr30k"}))


def test_both_layouts_give_the_same(folder):
    tokens = load_captions(folder)
    assert [path.name for path in tokens.images] == list(NAMES)
    assert tokens.captions[:3] == ("Caption 0 of 1.jpg .", "Caption 1 of 1.jpg .", "Caption 0 of 2.jpg .")
    assert tokens.image_of.tolist() == [0, 0, 1, 1, 2, 2]
    karpathy(folder)
    whole, test = load_captions(folder), load_captions(folder, "test")
    assert (whole.images, whole.captions) == (tokens.images, tokens.captions)
    assert [path.name for path in test.images] == ["1.jpg", "3.jpg"]
    assert test.image_of.tolist() == [0, 0, 1, 1]


def test_a_clip_model_on_files(folder, clip):
    data = load_captions(folder)
    found = retrieval(clip, data, ks=(1, 2, 3), batch_size=2)
    pixels = torch.zeros(3, 3, 32, 32)
    for number, path in enumerate(data.images):  # 40 x 50 is resized to 32 x 40 and cut to its middle
        middle = np.asarray(Image.open(path).resize((40, 32), Image.Resampling.BICUBIC))[:, 4:36]
        pixels[number] = torch.from_numpy(middle.copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        images = clip.network.encode_image(clip.normalize(pixels), normalize=True).double().numpy()
        texts = clip.network.encode_text(clip.tokenizer(list(data.captions)), normalize=True).double().numpy()
    for k in (1, 2, 3):
        expected = naive(images, texts, data.image_of.numpy(), k)
        assert (found.image_to_text[k], found.text_to_image[k]) == pytest.approx(expected)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_files_that_are_missing(folder):
    with refused(
        DataError,
        f"{folder.parent} must hold the images in flickr30k-images or flickr30k_images or images, but got none of them; "
        "name it so.",
    ):
        load_captions(folder.parent)
    with refused(
        ConfigError,
        "a split is read from dataset_flickr30k.json, but got test and only results_20130124.token; get that file, or "
        "take all.",
    ):
        load_captions(folder, "test")
    (folder / "flickr30k-images" / "2.jpg").unlink()
    with refused(
        DataError,
        f"every caption needs its image and every image a caption, but got 2.jpg, which is not in {folder}"
        "/flickr30k-images; mend the files.",
    ):
        load_captions(folder)
    (folder / "results_20130124.token").unlink()
    with refused(
        DataError,
        f"{folder} must hold dataset_flickr30k.json or results_20130124.token, but got neither; put the captions there.",
    ):
        load_captions(folder)


@pytest.mark.parametrize("line", ["1.jpg\tno number", "1.jpg#0 no tab", "1.jpg#0\t ", "../1.jpg#0\tclimbs", "\x00#0\t"])
def test_lines_that_are_no_captions(folder, line):
    path = folder / "results_20130124.token"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(
        DataError, match=r"each line of results_20130124.token must be FILE#NUMBER, .+ line 7: .+; mend it"
    ):
        load_captions(folder)


def test_a_file_of_captions_without_any(folder):
    (folder / "results_20130124.token").write_text("\n\n")
    with refused(DataError, "results_20130124.token must hold captions, but got none; copy it again."):
        load_captions(folder)
    (folder / "results_20130124.token").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"results_20130124.token must be a readable text, but got .+; copy it again"):
        load_captions(folder)


def test_a_json_that_is_no_list_of_captions(folder):
    text = "dataset_flickr30k.json must list images with filename, split and sentences, but got {}; copy it again."
    for content, seen in (
        ("{", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "TypeError: list indices must be integers or slices, not str"),
        ('{"images": [{"filename": "1.jpg"}]}', "KeyError: 'split'"),
    ):
        (folder / "dataset_flickr30k.json").write_text(content)
        with refused(DataError, text.format(seen)):
            load_captions(folder)
    rule = "every caption needs its image and every image a caption, but got "
    karpathy(folder, sentences=[])
    with refused(DataError, rule + "1.jpg without one; mend the files."):
        load_captions(folder)
    karpathy(folder, filename="../flickr30k-images/1.jpg")
    with pytest.raises(DataError, match=r"but got \.\./flickr30k-images/1\.jpg, which is not in"):
        load_captions(folder)
    karpathy(folder)
    with refused(ConfigError, "a split is one of test, train, but got val; choose one of them, or take all."):
        load_captions(folder, "val")


def test_features_that_do_not_fit():
    one, rule = torch.eye(3), "every caption needs its image and every image a caption, but got "
    with refused(DataError, rule + "3 images, 3 captions and 2 references; number the images from 0."):
        recalls(one, one, torch.tensor([0, 1]))
    with refused(DataError, rule + "3 images, 3 captions and 3 references; number the images from 0."):
        recalls(one, one, torch.tensor([0, 1, 1]))
    with refused(ConfigError, "recall is taken at ranks from one, but got (0, 1); use 1, 5 and 10."):
        recalls(one, one, torch.arange(3), ks=(0, 1))


def test_an_image_that_cannot_be_decoded(folder, clip):
    data = load_captions(folder)
    data.images[1].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"an image file must be a whole image, but got .+2\.jpg .+; replace it"):
        retrieval(clip, data)
