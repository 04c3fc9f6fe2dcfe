"""The study benchmark gives both ways the same work; its figures need the whole of it, and a quiet machine."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks lie beside src

from benchmarks import study_grid, study_reference, study_store
from pinchpoint.compress import GroupLasso, NuclearNorm
from pinchpoint.measure import profile
from pinchpoint.study import gather, parse, plan, run


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Of digits, written into the folder."""
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    small = study_grid.grid(tmp_path)
    return replace(small, hidden=(12,), epochs=1, train_samples=200, test_samples=20, steps=2)


def parsed(monkeypatch, command) -> Namespace:
    monkeypatch.setattr(sys, "argv", command[2:])
    return study_reference.arguments()


def test_both_ways_are_given_the_same_36_cells(setting, monkeypatch):
    tasks = plan(parse(json.dumps(setting.study()))).tasks
    assert len(tasks) == len(set(setting.cells)) == 36
    for task, cell in zip(tasks, setting.cells, strict=True):
        args = parsed(monkeypatch, setting.command(*cell))
        recipe = task.cell
        assert (recipe.penalty.nuclear_norm, recipe.penalty.group_lasso, task.seed) == cell
        assert (args.nuclear, args.lasso, args.seed) == cell
        assert f"npz:{args.data}" == recipe.data.name
        assert (args.train_samples, args.test_samples) == (recipe.data.limit_train, recipe.data.limit_test)
        assert tuple(args.hidden) == recipe.model.hidden
        assert args.constant_frobenius == recipe.constant_frobenius
        train = recipe.train
        assert (args.epochs, args.batch_size, args.lr) == (train.epochs, train.batch_size, train.learning_rate)
        assert args.weight_decay == train.weight_decay
        assert [(one.norm, one.eps) for one in recipe.audit.threats] == [("linf", args.linf), ("l2", args.l2)]
        assert args.steps == recipe.audit.steps
        assert args.k_share == recipe.audit.k_share


def test_the_script_measures_and_penalises_as_the_package_does():
    args = Namespace(hidden=[20, 16], nuclear=0.3, lasso=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = study_reference.network(args, 30, 10)
    measured = profile(model, k_share=0.25)
    found = study_reference.compressibility(model, 0.25)
    assert found == pytest.approx({"neuron": measured.neuron, "spectral": measured.spectral}, rel=1e-5)
    hidden = [module.weight for module in model if isinstance(module, torch.nn.Linear)][:-1]
    ours = NuclearNorm(0.3, mode="exact")(model) + GroupLasso(0.2)(model)
    assert float(study_reference.penalty(hidden, args).detach()) == pytest.approx(float(ours.detach()), rel=1e-5)


def test_the_script_learns_and_keeps_norms():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(300, 1, 4, 4, generator=draw)
    data = TensorDataset(x, (x[:, 0, 0, 0] > 0.5).long())
    args = Namespace(
        hidden=[16],
        epochs=8,
        batch_size=32,
        lr=0.02,
        weight_decay=0.0,
        nuclear=1e-3,
        lasso=0.0,
        constant_frobenius=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = study_reference.network(args, 16, 2)
        before = [float(parameter.detach().norm()) for parameter in model.parameters()]
        study_reference.train(model, data, data, args)
    after = [float(parameter.detach().norm()) for parameter in model.parameters()]
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert after[1] != pytest.approx(before[1], rel=1e-2)
    assert (model(x).argmax(1) == data.tensors[1]).float().mean() > 0.9


def test_cells_of_the_script_are_of_both_kinds_and_their_weights_are_the_grids(setting):
    some = study_grid.chosen(setting)
    assert len(set(some)) == 6
    assert set(some) <= set(setting.cells)
    rows = [{"nuclear": cell[0], "wall": 10.0 if cell[0] else 1.0} for cell in some]
    assert study_grid.whole(rows, setting.cells, "wall") == 27 * 10.0 + 9 * 1.0


def test_differences_are_measured_in_ranges_of_seeds():
    study = [{"nuclear": 0.0, "lasso": 0.0, "a": value} for value in (0.4, 0.5, 0.6)]
    study += [{"nuclear": 0.0, "lasso": 1.0, "a": value} for value in (0.7, 0.7, 0.8)]
    script = [{"nuclear": 0.0, "lasso": 0.0, "a": 0.6}, {"nuclear": 0.0, "lasso": 1.0, "a": 0.4333333}]
    found = study_grid.compared(script, study, ["a"])["a"]
    assert found["mean_difference"] == pytest.approx(-0.1)
    assert found["largest_difference"] == pytest.approx(0.3)
    assert found["seed_range"] == pytest.approx(0.2)
    assert found["mean_over_seed_range"] == pytest.approx(0.1 / 0.15)
    assert found["largest_over_seed_range"] == pytest.approx(1.5)
    same = [{"nuclear": 0.0, "lasso": 0.0, "a": 0.5}]
    assert study_grid.compared(same, same, ["a"])["a"]["largest_over_seed_range"] == 0.0


def test_a_synthetic_store_is_whole_and_its_records_differ(tmp_path):
    config = parse(study_store.study(6, seeds=2))
    store = study_store.fill(config, tmp_path)
    assert store.finished() == plan(config).stages.keys()
    assert run(config, store) == []  # everything is found, nothing done
    assert not (store.root / "claims").exists()
    summary, _ = gather(config, store)
    assert len(summary.models) == 12
    for norm in ("linf", "l2"):
        assert len({row[f"robust_accuracy_{norm}"] for row in summary.models}) == 12


def test_a_process_is_timed_and_its_failure_is_told(capfd):
    printed, wall, cpu = study_grid.measured([sys.executable, "-c", "print('first'); print('last')"])
    assert printed == "last"
    assert 0 < cpu < 10 * wall
    with pytest.raises(SystemExit, match="failed"):
        study_grid.measured([sys.executable, "-c", "raise ValueError('no')"])
    assert "no" in capfd.readouterr().err


@pytest.mark.slow
def test_the_whole_contest_on_a_few_digits(setting, tmp_path):
    pytest.importorskip("art", reason="needs the extra 'peers': adversarial-robustness-toolbox")
    tiny = replace(setting, nuclear=(0.0, 1e-3, 2e-3), lasso=(0.0, 1e-3), seeds=(0,))
    ratios, details = study_grid.contest(tiny, tmp_path)
    assert set(ratios) >= {"grid_speedup_over_reference_way", "grid_accuracy_gap_over_seed_range"}
    assert all(value > 0 for value in ratios.values())
    assert details["study"]["cells"] == 6
    assert len(details["reference"]["each"]) == 6
    assert all(
        np.isfinite(row["wall"]) and row["wall"] > math.fsum(row["seconds"].values())
        for row in details["reference"]["each"]
    )


@pytest.mark.slow
def test_bookkeeping_grows_as_it_says():
    from benchmarks import study

    ratios, growth = study.bookkeeping(sizes=(1000, 2000), cached=2)
    assert set(ratios) >= {"cached_stage_ms", "plan_2k_seconds", "read_2k_seconds"}
    assert [row["size"] for row in growth["plan"]] == [1000, 2000]
    assert all(value > 0 for value in ratios.values())
