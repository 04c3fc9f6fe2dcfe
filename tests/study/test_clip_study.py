"""CLIP in a study: fine-tuned under a penalty, judged zero-shot and by retrieval."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from oracles.as_user import refused
from pinchpoint.data import Dataset
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.models.build import ZeroShotConfig, build
from pinchpoint.models.checkpoint import CheckpointConfig, load, save
from pinchpoint.models.clip import load_clip, zero_shot
from pinchpoint.models.retrieval import recalls
from pinchpoint.models.zero_shot import CLASS_NAMES, with_tower
from pinchpoint.recipes.recipe import Recipe, make
from pinchpoint.records.metrics import metric_keys
from pinchpoint.study import Store, catalogue, gather, parse, plan, run
from pinchpoint.study.config.claims import ClaimConfig
from pinchpoint.study.config.study import make_cell
from pinchpoint.train.parallel import Alone
from pinchpoint.utils.torchvision import import_torchvision

RECALLS = metric_keys(stage="retrieval")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SHAPE = (3, 32, 32)
CONFIG = ZeroShotConfig(name="clip:tiny-study", classes=("cat", "dog", "truck"), templates=("a photo of a {}.",))


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory):
    import_torchvision()
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-study.json").write_text(json.dumps(TINY))
    (folder / "tiny-biased-study.json").write_text(json.dumps(TINY | {"init_logit_bias": -3.0}))
    open_clip.add_model_config(folder)


@pytest.fixture
def images():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def captions(folder, count=12):
    """Pictures of noise with two captions each."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    lines = [
        f"{number}.png#{place}\tPicture {number} , told {place} times" for number in range(count) for place in (1, 2)
    ]
    (folder / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return folder


# --- the network --------------------------------------------------------------------------------------------------------


def test_builds_what_zero_shot_makes_of_the_same_weights(images):
    before = torch.random.get_rng_state()
    model = build(CONFIG, SHAPE, 3, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    expected = zero_shot(load_clip("tiny-study", seed=5), CONFIG.class_names, CONFIG.templates)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected(images), rtol=0, atol=0)
        assert not torch.equal(model(images), build(CONFIG, SHAPE, 3, seed=6)(images))
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["head.weight"]


def test_weights_of_a_file_and_normalisation(images, tmp_path):
    clip = load_clip("tiny-study", seed=9)
    save_file(clip.network.state_dict(), tmp_path / "w.safetensors")
    trained = CONFIG.model_copy(update={"weights": str(tmp_path / "w.safetensors"), "mean": (0.5,), "std": (0.25,)})
    model = build(trained, SHAPE, 3)
    own = zero_shot(clip, CONFIG.class_names, CONFIG.templates)
    with torch.no_grad():
        torch.testing.assert_close(model(images), own[1:]((images - 0.5) / 0.25))


def test_names_that_everybody_knows():
    assert CLASS_NAMES["cifar10"] == ZeroShotConfig(name="clip:tiny-study").class_names
    assert len(CLASS_NAMES["cifar10"]) == 10
    assert list(CLASS_NAMES["cifar10"]) == sorted(CLASS_NAMES["cifar10"])  # the order of folders, too


@pytest.mark.parametrize("name", ["clip:tiny-study", "clip:tiny-biased-study"])
def test_training_with_a_penalty_moves_the_image_tower_alone_and_a_checkpoint_keeps_it(name, images, tmp_path):
    config = CONFIG.model_copy(update={"name": name})
    y = torch.arange(6) % 3
    recipe = Recipe(
        model=config,
        penalty={"group_lasso": 0.01},
        train={"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "patience": None},
        device="cpu",
    )
    before = build(config, SHAPE, 3, seed=1)
    data = Dataset("noise", 3, images, y, images, y, images, y)
    model, _ = make(recipe, data, seed=1, engine=Alone(torch.device("cpu")))
    for part in ("normalize", "unit", "head"):
        old, new = (one.get_submodule(part).state_dict() for one in (before, model))
        assert all(torch.equal(old[key], new[key]) for key in old)
    old, new = before.network.state_dict(), model.network.state_dict()
    assert any(not torch.equal(old[key], new[key]) for key in old if key.endswith("mlp.c_fc.weight"))

    about = CheckpointConfig(
        model=config.model_copy(update={"weights": "gone.safetensors"}), input_shape=SHAPE, classes=3
    )
    save(tmp_path, model, about)
    again, read = load(tmp_path)
    assert read.model == about.model
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_retrieval_is_by_the_towers_that_the_classifier_has(images):
    """Features by hand, one by one; a model trained from seed 4 keeps the text tower of seed 4."""
    model = build(CONFIG, SHAPE, 3, seed=4)
    with torch.no_grad():
        model.network.proj.mul_(torch.randn(32, 16, generator=torch.Generator().manual_seed(1)))
        clip = with_tower(CONFIG.clip(SHAPE, seed=4), model)
        torch.testing.assert_close(zero_shot(clip, CONFIG.class_names, CONFIG.templates)(images), model(images))


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_classes_and_data_that_do_not_fit():
    text = "clip:tiny-study needs a name for each of the data's 10 classes, but got 3 names; list them under model.classes, "
    with refused(ModelError, text + "in the order of the labels."):
        build(CONFIG, SHAPE, 10)
    with refused(ModelError, "clip:tiny-study takes images of 3 channels, but got 1x32x32; use other data."):
        build(CONFIG, (1, 32, 32), 3)
    for odd in ("cifar11", 3, ["cat", 3]):
        text = "the configuration, model.classes: classes are cifar10, or a list with a name for each label"
        with refused(ConfigError, f"{text}, but got {odd}; write for example [cat, dog]."):
            make_cell({"model": {"name": "clip:tiny-study", "classes": odd}}, {})


def test_retrieval_without_captions_or_without_a_text_tower():
    with pytest.raises(ConfigError, match=r"retrieval needs captions, but got none; add audit\.captions"):
        make_cell({"model": CONFIG.model_dump(), "audit": {"stages": ["retrieval"]}}, {})
    audit = {"stages": ["retrieval"], "captions": {"folder": "here"}}
    with pytest.raises(
        ConfigError, match=r"retrieval needs a model that reads captions, but got fcn; use model.name clip:NAME"
    ):
        make_cell({"audit": audit}, {})
    with pytest.raises(ModelError, match="the parts of a zero-shot classifier"):
        with_tower(CONFIG.clip(SHAPE), torch.nn.Sequential(torch.nn.Linear(2, 2)))


# --- a study ------------------------------------------------------------------------------------------------------------

STUDY = """
study: tiny_clip
seeds: [3]
base:
  data: {name: "npz:FOLDER/data.npz", workers: 0}
  model: {name: "clip:tiny-study", classes: [cat, dog], templates: ["a photo of a {}."]}
  train: {epochs: 1, batch_size: 8, optimizer: adamw, learning_rate: 0.01, patience: null}
  audit:
    stages: [attack, retrieval]
    captions: {folder: FOLDER/captions}
    threats: [{norm: linf, eps: 0.01}]
    samples: 8
    steps: 2
  device: cpu
families:
  - name: lasso
    view: neuron
    grid: {penalty.group_lasso: [0, 0.1]}
    labels: [none, "0.1"]
claims:
  - id: finds_less
    says: A compressible tower finds fewer captions
    trend: {metric: recall_image_to_text_5, expected: falls}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("clip")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8), np.arange(40) % 2
    np.savez(made / "data.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    captions(made / "captions")
    return made


def test_a_study_with_retrieval(folder, tmp_path):
    config = parse(STUDY.replace("FOLDER", str(folder)))
    store, planned = Store(tmp_path / "store"), plan(config)
    assert [kind for kind, _ in planned.tasks[0].own] == ["train", "profile", "retrieval", "attack"]
    assert run(config, store) == []
    summary, runs = gather(config, store)
    row = summary.models[-1]
    one = next(one for one in runs if one.id == row["run"])
    assert (one.audit.retrieval.images, one.audit.retrieval.captions) == (12, 24)
    assert {name: row[name] for name in RECALLS} == {
        f"recall_{name}": value for name, value in one.audit.retrieval.model_dump().items() if "_to_" in name
    }
    assert {item.metric for item in summary.families[0].correlations if item.metric in RECALLS} == set(RECALLS)
    assert summary.verdicts[0].metric == "recall_image_to_text_5"

    # the same by hand, from the checkpoint and the text tower of the seed
    task = next(task for task in planned.tasks if task.id == row["run"])
    model = load(store.folder(task.model))[0]
    clip = load_clip("tiny-study", seed=task.seed)
    names = [f"{number}.png" for number in range(12)]
    pixels = [np.asarray(Image.open(folder / "captions" / "images" / name)) for name in names]
    texts = [f"Picture {number} , told {place} times" for number in range(12) for place in (1, 2)]
    with torch.no_grad():
        x = model[:-1](torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255)
        t = clip.network.encode_text(clip.tokenizer(texts), normalize=True)
    found = recalls(x, t, torch.arange(24) // 2)
    assert found.image_to_text == {k: row[f"recall_image_to_text_{k}"] for k in (1, 5, 10)}
    assert found.text_to_image == {k: row[f"recall_text_to_image_{k}"] for k in (1, 5, 10)}
    assert 0 < found.image_to_text[10] < 1


def test_captions_are_part_of_the_id_of_retrieval_alone_and_are_looked_for_at_once(folder, tmp_path):
    text = STUDY.replace("FOLDER", str(folder))
    other = parse(text, overrides={"audit.captions.split": "test"})
    one, two = set(plan(parse(text)).stages), set(plan(other).stages)
    assert {kind for kind, _ in one ^ two} == {"retrieval"}
    missing = parse(text, overrides={"audit.captions.folder": str(tmp_path)})
    store = Store(tmp_path / "store")
    with pytest.raises(DataError, match="must hold the images in"):
        run(missing, store)
    assert store.finished() == set()


@pytest.mark.parametrize("metric", RECALLS)
def test_a_claim_may_be_about_recall_and_needs_no_norm(metric):
    trend = {"metric": metric, "expected": "falls"}
    assert ClaimConfig(id="a", says="It falls", trend=trend).how.norm is None
    with pytest.raises(ValidationError, match=f"{metric} is measured without a norm, but got linf; leave norm out"):
        ClaimConfig(id="a", says="It falls", trend=trend | {"norm": "linf"})


@pytest.mark.slow
def test_the_catalogues_entry_with_retrieval(folder, tmp_path):
    """The quick scale on noise, with the stage it leaves out."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, *SHAPE), dtype=np.uint8), np.arange(200) % 10
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    small = {
        "seeds": [0],
        "families.group_lasso.grid": {"penalty.group_lasso": [0, 0.01]},
        "families.group_lasso.labels": None,
        "families.l1.grid": {"penalty.l1": [0, 0.0001]},
        "families.l1.labels": None,
        "data.name": f"npz:{tmp_path / 'data.npz'}",
        "train.epochs": 1,
        "model.name": "clip:tiny-study",
        "audit.stages": ["attack", "mechanism", "retrieval"],
        "audit.captions": {"folder": str(folder / "captions")},
        "audit.samples": 8,
        "audit.steps": 1,
        "audit.curve_steps": 1,
    }
    config = catalogue("clip", "quick", small)
    store = Store(tmp_path / "store")
    assert run(config, store) == []
    assert all(row["recall_text_to_image_10"] is not None for row in gather(config, store)[0].models)
