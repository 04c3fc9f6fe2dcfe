"""An evaluation's state as a file, so that one cut short goes on: tensors, and JSON in the file's header."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pinchpoint.attack import Threat
from pinchpoint.errors import CheckpointError
from pinchpoint.utils.files import write_safetensors

_FORMAT = 1


def save_state(path: Path, tensors: dict[str, Tensor], numbers: dict[str, int], owner: dict[str, str]) -> None:
    """Write the state and whose it is; the file is replaced whole."""
    header = json.dumps({"format": _FORMAT, "numbers": numbers, "owner": owner})
    write_safetensors(path, tensors, {"evaluation": header})


def load_state(path: Path, owner: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors and numbers of a state that this owner wrote.

    Raises:
        CheckpointError: for a state of another evaluation, and for a file that is no state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["evaluation"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        written, numbers, version = header["owner"], header["numbers"], header["format"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        problem = "no such header" if isinstance(error, KeyError | TypeError) else str(error)
        raise CheckpointError(
            "resume needs the state of an evaluation", f"{path}: {problem}", "name a new file or delete this one"
        ) from error
    differing = [part for part in owner if written.get(part) != owner[part]]
    if version != _FORMAT or differing:
        raise CheckpointError(
            "an evaluation goes on only from its own state",
            f"{path} of another {' and '.join(differing) or 'version of Pinchpoint'}",
            "name a new file, or repeat the call that wrote this one",
        )
    return tensors, numbers


def fingerprint(
    model: nn.Module,
    data: tuple[Tensor | None, ...],
    threat: Threat,
    attacks: dict[str, Callable[..., Tensor]],
    settings: Mapping[str, object],
) -> dict[str, str]:
    """Who a state belongs to: hashes of model (structure and weights), data, threat and configuration.

    >>> mine, other = (fingerprint(nn.Linear(2, 2), (), Threat("linf", eps), {}, {}) for eps in (0.1, 0.2))
    >>> [part for part in mine if mine[part] != other[part]]
    ['model', 'threat']
    """
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "model": _digest(f"{type(model).__qualname__} {model}", *weights, *weights.values()),
        "data": _digest(*data),
        "threat": _digest(repr(threat)),
        "configuration": _digest(
            *(f"{name}: {_described(attack)}" for name, attack in attacks.items()), repr(settings)
        ),
    }


def _digest(*parts: Tensor | str | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)};".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def _described(thing: object) -> str:
    """Name and parameters of a callable: what a partial or closure holds, without memory addresses."""
    if isinstance(thing, functools.partial):
        return f"partial({_described(thing.func)}, {_plain(thing.args)}, {_plain(thing.keywords)})"
    held = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    named = getattr(thing, "__qualname__", None)
    return f"{named} {_plain(held)} {_plain(getattr(thing, '__defaults__', None))}" if named else _plain(thing)


def _plain(thing: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
