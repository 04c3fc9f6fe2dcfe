"""The command line: teaches, ends with one sentence and status 2 on bad input (studies: tests/cli/test_study.py)."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import pinchpoint
from oracles.console import Said, pinch
from pinchpoint.attack import Threat
from pinchpoint.evaluate import Samples, attack_sheet
from pinchpoint.evaluate.named_attacks import Plan
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.build import CifarResNetConfig
from pinchpoint.models.checkpoint import CheckpointConfig, load, save
from pinchpoint.models.cifar_resnet import Architecture, cifar_resnet
from pinchpoint.records import AttackSheet, BoundSheet, Profile
from pinchpoint.report.terminal import down, up
from pinchpoint.train import TrainConfig, train


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory) -> Path:
    """A small trained network of digits. Not to be changed."""
    folder, config = tmp_path_factory.mktemp("checkpoint"), ModelConfig(hidden=(16,))
    model = build(config, digits.input_shape, digits.classes, seed=0)
    train(model, digits, TrainConfig(epochs=2, learning_rate=0.01), seed=0)
    save(folder, model, CheckpointConfig(model=config, input_shape=(1, 8, 8), classes=10, data="digits"))
    return folder


def timeless(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# --- help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ((), ["Start with pinchpoint demo", "demo", "study", "profile", "bound", "--version"]),
        (("demo",), ["nothing is downloaded", "a second call is quick", "--workers", "--json", "runs/demo"]),
        (("study",), ["what is finished is never done again", "run", "plan", "status", "report"]),
        (("study", "run"), ["Ctrl-C keeps what is finished", "A study file (YAML)", "--out"]),
        (("study", "status"), ["Show how far a study has come", "--json"]),
        (("study", "report"), ["from the runs that are finished", "--json"]),
        (
            ("profile",),
            ["Low means compressible", "timm:resnet18", "checkpoint folder", "--k-share", "--target", "--input-size"],
        ),
        (
            ("bound",),
            [
                "norm <= structure x scale",
                "gets estimates only",
                "--norm",
                "--budget",
                "--input-size",
                "l2 or linf",
                "--k",
            ],
        ),
    ],
    ids=lambda value: " ".join(value) or "pinchpoint",
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_teaches(command, taught, flag):
    said = pinch(*command, flag)
    assert (said.status, said.err) == (0, "")
    plain = " ".join(said.out.replace("│", " ").split())
    for phrase in taught:
        assert phrase in plain
    assert "[bold]" not in plain


def test_without_a_command_the_help_is_shown():
    said = pinch()
    assert "Start with pinchpoint demo" in said.out + said.err


def test_version():
    assert pinch("--version") == Said(0, f"pinchpoint {pinchpoint.__version__}\n", "")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("demmo",), "'demmo'"),
        (("study", "rnu"), "'rnu'"),
        (("demo", "--wokers", "2"), "--wokers"),
        (("demo", "--workers", "0"), "than or equal to 1"),
    ],
)
def test_wrong_usage_ends_with_status_2(wrong, named):
    said = pinch(*wrong)
    assert (said.status, said.out) == (2, "")
    assert named in said.err


# --- profile --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"k_share": 0.25, "target": 0.4}])
def test_profile_as_json_is_what_the_library_measures(checkpoint, options):
    flags = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)]
    said = pinch("profile", checkpoint, *flags, "--json")
    assert (said.status, said.err) == (0, "")
    model, config = load(checkpoint)
    assert Profile.model_validate_json(said.out) == pinchpoint.profile(model, input_shape=config.input_shape, **options)


def cells(text: str, name: str) -> list[str]:
    """The row of a table that starts with this name."""
    (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == [name] and ":" not in line]
    return row[1:]


def test_profile_table_shows_what_was_measured(checkpoint):
    result = pinchpoint.profile(load(checkpoint)[0])
    said = pinch("profile", checkpoint)
    assert said.out.splitlines()[0] == f"Compressibility of {checkpoint}"
    for layer in result.layers:
        views = [layer.neuron, layer.spectral, layer.entrywise, layer.column]
        shown = [
            f"{layer.rows}x{layer.columns}",
            f"{layer.effective_rank:.1f}",
            *(f"{view.residual:.3f}" for view in views),
        ]
        row = cells(said.out, layer.name)
        assert row[:6] == shown
        assert layer.linf <= float(row[6]) <= layer.linf + 0.0101
        assert layer.l2_upper <= float(row[7]) <= layer.l2_upper + 0.0101
        assert row[8:12] == [f"{view.k_for_target / view.n:.0%}" for view in views]
    means = [result.neuron, result.spectral, result.entrywise, result.column]
    assert cells(said.out, "network") == [f"{1 - mean:.3f}" for mean in means]


@pytest.mark.parametrize(("width", "groups"), [(80, 2), (120, 4)])
def test_profile_table_of_a_deep_network_fits_the_terminal(tmp_path, monkeypatch, width, groups):
    """As many columns as there is room for, each explained below."""
    config = CifarResNetConfig(depth=20, width=16)
    save(tmp_path, build(config, (3, 8, 8), 10), CheckpointConfig(model=config, input_shape=(3, 8, 8), classes=10))
    result = pinchpoint.profile(load(tmp_path)[0], norms=False)
    sizes = {"rows": 1000, "columns": 3072, "effective_rank": 954.8, "stable_rank": 406.74, "linf": 87654.3}
    view = result.layers[0].neuron.model_copy(update={"n": 1000, "k_for_target": 1000})
    wide = sizes | dict.fromkeys(("neuron", "spectral", "entrywise", "column"), view)
    result = result.model_copy(update={"layers": [layer.model_copy(update=wide) for layer in result.layers]})
    monkeypatch.setattr("pinchpoint.measure.profile", lambda *_, **__: result)
    text = pinch("profile", tmp_path, width=width).out
    table = text.partition("neur:")[0].splitlines()[1:]
    assert max(map(len, table)) <= width
    assert "…" not in text
    assert [line.split()[0] for line in table if line.split()[1:2] == ["1000x3072"]] == [
        layer.name for layer in result.layers
    ]
    told = {"norm:": "87655", "k:": "100%", "sprd:": f"{view.spread:.3f}", "stable rank:": "406.74"}
    shown = [heading for heading, cell in told.items() if cell in cells(text, "linear")]
    assert shown == [heading for heading in told if any(line.startswith(heading) for line in text.splitlines())]
    assert len(shown) == groups
    assert "no norm for 19 of 20 layers: not asked for (norms=False)" in text
    assert "left out: 19 BatchNorm2d: " in text


def test_profile_says_at_which_k(checkpoint):
    assert "resid: residual at k = 0.3 of the terms" in pinch("profile", checkpoint, "--k-share", 0.3).out
    said = pinch("profile", checkpoint, "--target", 0.5).out
    assert "resid: residual at k = a tenth of the terms" in said
    assert "k: share of the terms that suffices for a residual of at most 0.5" in said


def test_profile_of_a_bare_state_dict_tells_on_stderr_what_is_assumed(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(cifar_resnet(Architecture(8, 4, 3, 5)).state_dict(), path)
    said = pinch("profile", path, "--input-size", 8, "--json")
    assert said.status == 0
    assert said.err == (
        "note: the tensors are taken for a CIFAR ResNet-8 of width 4 with 5 classes and option A shortcuts\n"
        "note: the file gives no mean and std, so inputs are not normalised\n"
    )
    record = Profile.model_validate_json(said.out)
    assert [layer.name for layer in record.layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert all(layer.l2_upper is not None for layer in record.layers)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs pinchpoint[vision]")
def test_profile_of_a_network_of_timm():
    said = pinch("profile", "timm:test_vit", "--input-size", 32)
    assert said.status == 0
    assert said.err.startswith("note: weights are random (seed 0); for trained ones write timm:test_vit@FILE\n")
    assert len(cells(said.out, "head")) >= 6, "names are shown without the wrapper's own"
    record = json.loads(pinch("profile", "timm:test_vit", "--input-size", "3x32x32", "--json").out)
    assert record["layers"][-1]["name"] == "network.head"


@pytest.mark.long
@pytest.mark.parametrize("depth", [20, 32])
def test_profile_of_the_trained_resnets(real_data, depth):
    said = pinch("profile", real_data / f"cifar10_resnet{depth}.safetensors", "--json")
    record = Profile.model_validate_json(said.out)
    assert len(record.layers) == depth
    assert all(layer.l2_lower <= layer.l2_upper for layer in record.layers)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("none",),
            "but got none, where there is nothing; check the path, or write timm:none for the network of that name.",
        ),
        (("tmm:resnet18",), "but got tmm:resnet18; perhaps timm:resnet18 is meant."),
        (
            ("none", "--input-size", "big"),
            "an input size is SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, but got big; ",
        ),
    ],
)
def test_profile_of_what_is_no_model_is_one_sentence(monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert text in pinch("profile", *arguments).error


def test_profile_of_what_is_no_whole_checkpoint_is_one_sentence(checkpoint, tmp_path):
    assert "a checkpoint is a directory with model.safetensors and config.json, but got no config.json in" in (
        pinch("profile", tmp_path).error
    )
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"{weights} must be a whole safetensors file, but got " in pinch("profile", copy).error
    weights.write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["hidden"] = [17]
    (copy / "config.json").write_text(json.dumps(config))
    assert pinch("profile", copy).error == (
        f"the tensors in {copy} must fit its config, which asks for 1.weight (17, 64) float32, but got 1.weight (16, "
        "64) float32; put the config beside the tensors it was written with."
    )
    (copy / "config.json").write_text("{")
    assert f"{copy / 'config.json'} must describe a model, but got " in pinch("profile", copy).error


@pytest.mark.parametrize(("flag", "value"), [("--k-share", 0), ("--k-share", "nan"), ("--target", -1)])
def test_profile_refuses_a_share_or_target_out_of_range(checkpoint, flag, value):
    assert " lies in " in pinch("profile", checkpoint, flag, value).error


# --- attack ---------------------------------------------------------------------------------------------------------------


def test_attack_as_json_is_what_the_library_finds(checkpoint, digits, tmp_path):
    flags = ("--data", "digits", "--samples", 40, "--attack", "apgd", "--steps", 5, "--no-checks", "--curve", 3)
    said = pinch("attack", checkpoint, *flags, "--threat", "linf:8/255", "--threat", "l2:0.3", "--json")
    assert said.status == 0
    assert said.err.splitlines()[0] == "note: the first 40 of 450 test samples are attacked; --samples changes it"
    model, _ = load(checkpoint)
    threats, plan = [Threat("linf", 8 / 255), Threat("l2", 0.3)], Plan("apgd", steps=5, checks=False, curve=3)
    there = attack_sheet(model, Samples(digits.x_test[:40], digits.y_test[:40]), threats, plan)
    here = AttackSheet.model_validate_json(said.out)
    assert timeless(here.model_dump()) == timeless(there.model_dump())


def test_attack_table_counts_what_settled_the_samples(checkpoint, tmp_path):
    flags = ("--data", "digits", "--samples", 40, "--attack", "universal", "--threat", "l2:0.5", "--out", tmp_path)
    said = pinch("attack", checkpoint, *flags)
    sheet = AttackSheet.model_validate_json((tmp_path / "attack.json").read_text())
    (found,) = sheet.threats
    assert said.status == 0
    assert f"fitted on {sheet.fitted_on} training samples" in said.out
    for name, count in found.settled.items():
        assert cells(said.out, name)[:2] == [str(count), f"{count / 40:.1%}"]
    assert f"l2 0.5: robust accuracy {found.robust_accuracy:.1%} " in said.out
    assert said.out.splitlines()[-1] == f"examples: {tmp_path / 'l2-0.5.safetensors'}"
    assert max(map(len, said.out.splitlines()[1:-1])) <= 90


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--data", "digits", "--attack", "cw"],
            "this option is one of standard, quick, apgd, pgd, fgsm, square, univ",
        ),
        (
            ["--data", "digits", "--threat", "linf:8"],
            "an l_inf budget in pixels from 0 to 1 is at most 1, but got linf:8; write linf:8/255",
        ),
        (
            ["--data", "digits", "--threat", "l3:1"],
            "norm must be one of linf, l2, l1, but got l3; write linf, l2 or l1.",
        ),
        (
            ["--data", "digits", "--threat", "linf"],
            "a threat is written norm:eps, but got linf; write for example linf:8/",
        ),
        (["--data", "digits", "--steps", 3], "steps can be chosen for apgd, pgd, square, universal, but got 3; leave"),
        (["--data", "letters"], "a data set must be known by name, but got letters; use digits, mnist,"),
        (["--data", "digits", "--out", "/proc/x"], "/proc/x must be writable, but got No such file or directory; name"),
        (
            ["--data", "digits", "--out", __file__],
            f"{__file__} must be a folder, but got the file {__file__}; choose another",
        ),
        (["--data", "digits", "--device", "gpu"], "a device is auto, cpu, cuda or cuda:NUMBER, but got gpu; use auto"),
    ],
)
def test_attack_refuses_what_makes_no_sense(checkpoint, flags, text):
    said = pinch("attack", checkpoint, *flags)
    assert (said.status, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith(f"error: {text}")


@pytest.mark.long
def test_attack_on_data_of_another_shape(tmp_path):
    config = CifarResNetConfig(depth=8, width=4)
    save(tmp_path, build(config, (3, 8, 8), 10), CheckpointConfig(model=config, input_shape=(3, 8, 8), classes=10))
    said = pinch("attack", tmp_path, "--data", "digits")
    assert said.status == 2
    assert "images of 3 channels" in said.err
    assert "1x8x8" in said.err


@pytest.mark.long
def test_interrupted_attack_says_what_is_kept(checkpoint, monkeypatch, tmp_path):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pinchpoint.evaluate.attack_sheet", stop)
    said = pinch("attack", checkpoint, "--data", "digits", "--out", tmp_path)
    assert (said.status, said.out) == (130, "")
    assert said.err.splitlines()[-1] == "Interrupted: the same command goes on from there."


# --- bound ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(checkpoint) -> Said:
    return pinch("bound", checkpoint, "--budget", 6)  # ample, so that a busy machine leaves nothing out


def test_bound_shows_the_bracket_then_every_method_and_the_layers_in_80_columns(checkpoint, bounded):
    assert (bounded.status, bounded.err) == (0, "")
    lines = bounded.out.splitlines()
    assert lines[0] == f"Bounds of {checkpoint} on inputs of 1x8x8"
    assert max(map(len, lines[1:])) <= 80
    for norm in ("l2", "linf"):
        (bracket,) = [line for line in lines if line.startswith(f"{norm}: ")]
        lower, upper = re.fullmatch(
            rf"{norm}: (\S+) <= Lipschitz constant <= (\S+), a factor of \S+ apart", bracket
        ).groups()
        assert 0 < float(lower) <= float(upper)
        place = lines.index(bracket)
        shown = {line.split()[0]: line for line in lines[place + 1 : place + 13] if line.strip()}
        assert {"seen", "sampled", "ascent", "product", "first-order", "encoder"} <= shown.keys()
        (tightest,) = [line.split()[1] for line in shown.values() if line.endswith(" tightest")]
        assert tightest == upper
    assert cells(bounded.out, "1")[0] == "16x64"


def test_bound_shows_numbers_on_the_safe_side():
    for value in (1.23456, 0.99999, 9.9999e-7, 123456.0, 1e300, 2.0, 0.25):
        assert value * 0.998 <= float(down(value)) <= value <= float(up(value)) <= value * 1.002
    assert (up(2.0), down(2.0), up(99999.0), down(0.001)) == ("2.000", "2.000", "1.000e+05", "0.001000")


def test_bound_as_json_is_the_record_and_norms_can_be_chosen(checkpoint):
    said = pinch("bound", checkpoint, "--norm", "linf", "--budget", 0, "--k", 3, "--json")
    assert (said.status, said.err) == (0, "")
    record = BoundSheet.model_validate_json(said.out)
    assert [network.norm for network in record.networks] == ["linf"]
    assert {bounds.k for layer in record.layers for bounds in layer.norms} == {3}
    assert record.input_shape == [1, 8, 8]


def test_bound_says_what_would_not_fit_and_why(checkpoint):
    said = pinch("bound", checkpoint, "--norm", "l2", "--budget", 0)
    plain = " ".join(said.out.split())
    assert "fast and first-order: would take about" in plain
    assert "of the budget are left" in plain
    assert "l2: 1 pairs of layers not aligned" in plain


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs pinchpoint[vision]")
def test_bound_of_a_network_with_attention_is_no_bound():
    said = pinch("bound", "timm:test_vit", "--input-size", 32, "--norm", "l2", "--budget", 2)
    assert said.status == 0
    assert re.search(r"^l2: no bound; seen, by search: \d", said.out, re.MULTILINE)
    assert "What is seen is no bound" in said.out
    assert re.search(r"^not bounded: Attention at \S+attn", said.out, re.MULTILINE)
    assert "<=" not in said.out
    assert len(cells(said.out, "head")) == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("none",), "check the path, or write timm:none for the network of that name."),
        (("CHECKPOINT", "--norm", "l1"), "norm must be one of linf, l2, but got l1; write linf or l2."),
        (("CHECKPOINT", "--budget", "-1"), "budget_s must be zero or more seconds, but got -1.0; try 20."),
        (("CHECKPOINT", "--budget", "nan"), "budget_s must be zero or more seconds, but got nan; try 20."),
        (("CHECKPOINT", "--k", "0"), "k must be at least 1, but got 0; leave it out for the tightest choice."),
        (("CHECKPOINT", "--input-size", "3x8x8"), "takes images of 1 channels, but got 3x8x8; use 1x8x8."),
        (("CHECKPOINT", "--input-size", "9"), "must take inputs of 1x9x9, but got "),
    ],
)
def test_bound_of_what_cannot_be_bounded_is_one_sentence(checkpoint, monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    given = [checkpoint if argument == "CHECKPOINT" else argument for argument in arguments]
    assert text in pinch("bound", *given).error
