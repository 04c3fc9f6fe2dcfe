"""Tensors from a file, without running anything that is in it, and into a network, only where every one fits."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pinchpoint.errors import CheckpointError

_MOST_SHARED = 16  # times that tensors may use the same numbers, as tied weights do
_NAMES = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "state", "ema")
_WRAPPERS = ("module.", "_orig_mod.")
_DEEPEST = 4  # dicts inside each other, wrappers around each other
_COUNTER = ".num_batches_tracked"  # of batch normalisation; old files lack it, and eval mode does not read it


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the file's metadata: from safetensors, or from what ``torch.load(weights_only=True)`` takes.

    A state dict inside another dict, as trainings save it beside optimizer and epoch, is found by its content: the only
    dict of tensors, or the first of several by the names of ``_NAMES``. What DataParallel, torch.compile and
    AveragedModel put before names (``module.``, ``_orig_mod.``) is dropped.

    Raises:
        CheckpointError: where the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError("a file of weights must be there", str(path), "check the path")
    content: object
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
    else:
        try:
            _check_sizes(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a hostile file can raise anything
            raise CheckpointError(
                f"{path} must be a whole file of tensors, as torch.save(model.state_dict()) writes it",
                _cause(error),
                "save the state dict again, best as .safetensors",
            ) from None
        content = _state_dict(path, content)
    tensors: dict[str, Tensor] = dict(content) if isinstance(content, Mapping) else {}
    odd = [f"{name}, a {type(value).__name__}" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if odd or not tensors:
        raise CheckpointError(
            f"{path} must hold named tensors and nothing else",
            odd[0] if odd else f"a {type(content).__name__} without any",
            "save model.state_dict() alone",
        )
    _check_storage(path, tensors)
    return _without_wrappers(tensors), metadata


def _cause(error: Exception) -> str:
    """Why torch did not read it; its advice to unpickle is left out."""
    text = str(error) or type(error).__name__
    pickled = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and pickled is not None:
        return f"a pickled {pickled[1]}, which is code and not run"
    return text.splitlines()[0]


def _state_dict(path: Path, content: object, depth: int = 0) -> object:
    """The dict of tensors in what was read, or what was read where there is none."""
    if not isinstance(content, Mapping) or _tensors_only(content) or depth == _DEEPEST:
        return content
    # numbered dicts are the state of an optimizer
    inner = {
        key: _state_dict(path, value, depth + 1)
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Mapping)
    }
    dicts = {str(key): value for key, value in inner.items() if _tensors_only(value)}
    if not dicts:
        return content
    for name in _NAMES:
        if name in dicts:
            return dicts[name]
    if len(dicts) > 1:
        rule = f"{path} must hold one dict of tensors, or one under a usual name ({', '.join(_NAMES)})"
        raise CheckpointError(rule, ", ".join(dicts), "save the one that is meant alone")
    return next(iter(dicts.values()))


def _tensors_only(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the network itself gives: without what wrappers put before all of them."""
    for _ in range(_DEEPEST):
        names = [name for name in tensors if name != "n_averaged"]
        wrapper = next((each for each in _WRAPPERS if names and all(name.startswith(each) for name in names)), None)
        if wrapper is None:
            break
        tensors = {name.removeprefix(wrapper): tensors[name] for name in names}
    return tensors


def _check_sizes(path: Path) -> None:
    """Refuse an archive that says it holds more than the file has: ``torch.save`` packs nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                raise ValueError("parts that are longer than the file")


def _check_storage(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are larger than what they were read from: copying them would fill the memory."""
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            seen = f"{name}, {tuple(tensor.shape)} on {tensor.device}"
            raise CheckpointError(f"{path} must hold plain tensors with all their numbers", seen, "save it again")
    check_shared(path, tensors, path.stat().st_size)


def check_shared(path: Path, tensors: Mapping[str, Tensor], stored: int) -> None:
    """Refuse tensors that use the same numbers so often that copies of them would fill the memory.

    Raises:
        CheckpointError: where they come to more than 16 times the ``stored`` bytes.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _MOST_SHARED * stored:
        seen = f"{total} bytes of tensors in {stored}"
        raise CheckpointError(f"{path} must hold the numbers of its tensors", seen, "save it again")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file, whatever its name ends in.

    Raises:
        CheckpointError: where it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} must be a whole safetensors file", str(error), "copy or download it again"
        ) from None


def put(tensors: Mapping[str, Tensor], network: nn.Module, where: str, remedy: str) -> None:
    """Load the tensors into the network; names and shapes must match.

    Raises:
        CheckpointError: naming the first tensor that is missing, too many, of another shape or kind of number.
    """
    wanted, found = _described(network.state_dict()), _described(tensors)
    for name in dict.fromkeys((*wanted, *found)):
        if wanted.get(name) != found.get(name) and not (name.endswith(_COUNTER) and name not in found):
            raise CheckpointError(
                f"the tensors in {where} must fit the network, which has {name} {wanted.get(name, 'nowhere')}",
                f"{name} {found.get(name, 'missing')}",
                remedy,
            )
    network.load_state_dict(tensors, strict=False)  # nothing but counters can be missing now


def _described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        name: f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'.replace('torch.', '')}"
        for name, tensor in tensors.items()
    }
