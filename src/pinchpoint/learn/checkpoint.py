"""A checkpoint is a directory: model.safetensors and config.json. Nothing is ever unpickled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.learn.models import AnyModelConfig, architecture, build

_TENSORS, _CONFIG = "model.safetensors", "config.json"


class CheckpointConfig(BaseModel):
    """What is needed to build the network again, and what data it was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    model: AnyModelConfig
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    classes: int = Field(ge=2)
    data: str = ""


def save(directory: Path, model: nn.Module, config: CheckpointConfig) -> None:
    """Write both files, each by atomic rename; the config comes last, so a checkpoint with one is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as temporary:
        save_file(tensors, Path(temporary) / _TENSORS)
        (Path(temporary) / _CONFIG).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name in (_TENSORS, _CONFIG):
            (Path(temporary) / name).replace(directory / name)


def load(path: Path) -> tuple[nn.Sequential, CheckpointConfig]:
    """Build the network of a checkpoint directory (or of the .safetensors file in it), in eval mode on the CPU.

    Raises:
        CheckpointError: where a file is missing, truncated or malformed, or the tensors do not fit the config.
    """
    directory = path.parent if path.name == _TENSORS else path
    for name in (_CONFIG, _TENSORS):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"a checkpoint is a directory with {_TENSORS} and {_CONFIG}",
                f"no {name} in {directory}",
                "give the directory that a study or pinchpoint.learn.checkpoint.save wrote",
            )
    try:
        config = CheckpointConfig.model_validate_json((directory / _CONFIG).read_bytes())
    except (ValidationError, OSError) as error:
        raise CheckpointError(
            f"{directory / _CONFIG} must describe a model",
            first_problem(error),
            "restore the file the checkpoint came with",
        ) from None
    try:
        tensors = load_file(directory / _TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory / _TENSORS} must be a whole safetensors file", str(error), "copy or train it again"
        ) from None
    return fill(config, tensors, directory), config


def fill(config: CheckpointConfig, tensors: dict[str, torch.Tensor], where: Path) -> nn.Sequential:
    """The config's network with these tensors in it; names, shapes and dtypes must match."""
    try:
        with torch.device("meta"):  # a config that asks for more than the tensors hold allocates nothing
            wanted = _described(build(architecture(config.model), config.input_shape, config.classes).state_dict())
    except (ModelError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{where / _CONFIG} must describe a model", str(error), "restore the file the checkpoint came with"
        ) from None
    found = _described(tensors)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"the tensors in {where} must fit its config, which asks for {name} {wanted.get(name, 'nowhere')}",
                f"{name} {found.get(name, 'missing')}",
                "put the config beside the tensors it was written with",
            )
    model = build(architecture(config.model), config.input_shape, config.classes)
    model.load_state_dict(tensors)
    return model.eval()


def _described(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items()
    }


def first_problem(error: Exception) -> str:
    """The first thing a validation found, in a few words."""
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        return f"{where or 'the file'}: {problem['msg']}"
    return str(error)
