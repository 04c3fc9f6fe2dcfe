"""State dicts as trainings save them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pinchpoint.errors import CheckpointError
from pinchpoint.models.weights import read_tensors


@pytest.mark.parametrize("key", ["net", "model_state_dict", "state", "weights", "ema", "anything"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_is_found_by_its_content(tmp_path: Path, key: str, prefix: str) -> None:
    weights = nn.Linear(3, 2).state_dict()
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({key: wrapped, "optimizer": optimizer, "epoch": 3, "acc": 92.0}, tmp_path / "a.pth")
    tensors, _ = read_tensors(tmp_path / "a.pth")
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights.items())


def test_two_state_dicts_of_unknown_names_are_refused(tmp_path: Path) -> None:
    torch.save({"first": {"a": torch.zeros(1)}, "second": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"must hold one dict of tensors, .* but got first, second;"):
        read_tensors(tmp_path / "a.pth")


def test_a_pickled_model_is_named_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 3)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"but got a pickled torch\.nn\.modules\.container\.Sequential") as caught:
        read_tensors(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)
