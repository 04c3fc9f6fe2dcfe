"""One training over two CPU processes: a program that Lightning Fabric starts again as the second one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pinchpoint.compress import GroupLasso
from pinchpoint.data import DataConfig, load
from pinchpoint.models import ModelConfig, build
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.parallel import Together


def trained(engine=None, state=None, on_step=None):
    """170 samples in batches of 13 and a last one of 1: shares are uneven, and one is empty."""
    data = load(DataConfig(name="digits", limit_train=200))
    model = build(ModelConfig(hidden=(16,)), data.input_shape, data.classes)
    config = TrainConfig(
        epochs=3, batch_size=13, accumulate=2, optimizer="sgd", learning_rate=0.05, clip_norm=1.0, adversarial_share=1.0
    )
    record = train(
        model,
        data,
        config,
        seed=0,
        penalty=GroupLasso(1e-3),
        attack=lambda model, x, y: x + 0.1 * (y % 2).reshape(-1, 1, 1, 1),
        engine=engine,
        state=state,
        save_seconds=0.0,
        on_step=on_step,
    )
    return model, record


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Together(devices=2, accelerator="cpu")
    found, said = trained(here, Path(sys.argv[1]) / "state.safetensors")
    if here.rank == 0:
        save_file(found.state_dict(), Path(sys.argv[1]) / "final.safetensors")
        (Path(sys.argv[1]) / "record.json").write_text(said.model_dump_json())
