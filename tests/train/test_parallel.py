"""Two processes on gloo train as one does: each takes half of every batch, and gradients are averaged."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from oracles import two_processes
from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.records import Training
from pinchpoint.train.parallel import Alone, Together


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
    pytest.importorskip("lightning_fabric")
    command = [sys.executable, two_processes.__file__, str(tmp_path)]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    alone, record = two_processes.trained()
    together = load_file(tmp_path / "final.safetensors")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=2e-5, rtol=0)  # the order of sums differs
    said = Training.model_validate_json((tmp_path / "record.json").read_text())
    assert said.best_epoch == record.best_epoch
    for theirs, ours in zip(said.history, record.history, strict=True):
        assert theirs.train_loss == pytest.approx(ours.train_loss, abs=1e-4)
        assert theirs.validation_loss == pytest.approx(ours.validation_loss, abs=1e-4)
    # what they kept is a state that two processes, and only two, go on from
    assert load_file(tmp_path / "state.safetensors")["rng.cpu"].shape[0] == 2


def test_what_cannot_be_started_is_one_sentence(monkeypatch):
    pytest.importorskip("lightning_fabric")
    with pytest.raises(ConfigError, match=r"the processes must be there to be started, but got 1 x 1 on warp \("):
        Together(devices=1, accelerator="warp")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = (
        "training in several processes needs Lightning Fabric, but got an installation without it; "
        "pip install 'pinchpoint[parallel]'."
    )
    with refused(ConfigError, text):
        Together(devices=2)


def test_alone_nothing_is_averaged():
    engine = Alone(torch.device("cpu"))
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(engine.sum(value), value)
    assert engine.gather(value).shape == (1, 2)
