"""A checkpoint is a directory: model.safetensors and config.json. Nothing is ever unpickled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pinchpoint.compress.layout import Layout, apply, layout_of
from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models.build import AnyModelConfig, architecture, build
from pinchpoint.utils.config import StrictModel, walk

_TENSORS, _CONFIG = "model.safetensors", "config.json"
_LARGEST_CUT, _ALWAYS_BUILT = 64, 2**27


class CheckpointConfig(StrictModel):
    """What is needed to build the network again, and what data it was made for. A pruned or factorised one has a layout."""

    format: Literal[1] = 1
    model: AnyModelConfig
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    classes: int = Field(ge=2)
    data: str = ""
    layout: Layout = Layout()


def save(directory: Path, model: nn.Module, config: CheckpointConfig) -> None:
    """Write both files, each by atomic rename; the config comes last, so a checkpoint with one is whole.

    Args:
        directory: made where it is not there.
        model: of the config's architecture, pruned or factorised or as it was built.
        config: its layout is found anew.

    Raises:
        ModelError: where the model is of another architecture.
    """
    with torch.device("meta"):
        config = config.model_copy(update={"layout": layout_of(_whole(config), model)})
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
                "give the directory that a study or pinchpoint.models.checkpoint.save wrote",
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
            whole = _whole(config)
            numbers = sum(tensor.numel() for tensor in whole.state_dict().values())
            network = apply(whole, config.layout)
            wanted = _described(network.state_dict())
            if config.layout != Layout():
                _check_runs(network, config.input_shape)
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
    if numbers > _LARGEST_CUT * sum(tensor.numel() for tensor in tensors.values()) + _ALWAYS_BUILT:
        raise CheckpointError(
            f"a layout must keep at least 1/{_LARGEST_CUT} of a large network, which is built whole first",
            f"an architecture of {numbers} numbers in {where / _CONFIG}",
            "describe a smaller architecture",
        )
    model = apply(_whole(config), config.layout)
    model.load_state_dict(tensors)
    assert isinstance(model, nn.Sequential)
    return model.eval()


def _whole(config: CheckpointConfig) -> nn.Sequential:
    """The architecture, before its layout cuts it down."""
    return build(architecture(config.model), config.input_shape, config.classes)


def _check_runs(network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Refuse sizes that do not fit each other."""
    try:
        with torch.no_grad():
            network.eval()(torch.empty(1, *input_shape))
    except Exception as error:  # whatever a network says
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError("the sizes of a layout must fit each other", said, "use its own layout") from None


def _described(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items()
    }


def first_problem(error: Exception) -> str:
    """The first thing the validation of a config found, in a few words."""
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        where = ".".join(walk(CheckpointConfig, problem["loc"])[0])
        return f"{where or 'the file'}: {problem['msg']}"
    return str(error)
