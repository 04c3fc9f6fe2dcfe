"""What is in a ``.pt2`` archive that torch.export wrote, read as JSON and plain numbers alone.

``torch.export.load`` is not used: it unpickles (sample inputs, constants, weights marked as pickled), evaluates strings by
sympy, imports modules that its JSON names, and writes names from the file into source text that it then executes. Here
nothing but the program's JSON and the raw bytes of its tensors is read; sample inputs and guards are never looked at, and
an archive that holds pickled weights, custom objects or compiled code is refused.

Source: the layout and the schema are those of torch 2.8 and later (torch/export/pt2_archive, torch/_export/serde/schema.py).
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pinchpoint.errors import CheckpointError
from pinchpoint.models.weights import check_shared

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""By the numbers of the schema's ScalarType."""
_NOT_TAKEN = {9: "complex32", 10: "complex64", 11: "complex128"}

_STRIDED = 7
_LONGEST_JSON = 2**26


@dataclass(frozen=True)
class Archive:
    """An exported program, nothing of it run.

    Attributes:
        program: the JSON of the graph module.
        tensors: parameters (as such), buffers and constants by name.
    """

    program: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_archive(path: Path) -> Archive:
    """Read it; every size is checked against that of the file before memory is taken.

    Raises:
        CheckpointError: where it is no such archive, damaged, or holds what would have to be unpickled or run.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(path, file)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can break any rule
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise _damaged(path, said) from None


def _read(path: Path, file: zipfile.ZipFile) -> Archive:
    infos = {info.filename.partition("/")[2]: info for info in file.infolist()}
    packed = next((info.filename for info in infos.values() if info.compress_type != zipfile.ZIP_STORED), None)
    if packed or sum(info.file_size for info in infos.values()) > path.stat().st_size:
        raise _damaged(path, f"{packed} compressed" if packed else "parts that are longer than the file")
    if any(name.startswith("data/aotinductor/") for name in infos):
        raise _unsafe(path, "compiled code")
    if "models/model.json" not in infos:
        old = any(info.filename.startswith("serialized_") for info in infos.values())
        raise _damaged(path, "one of before torch 2.8" if old else "an archive without models/model.json")
    if "byteorder" in infos and file.read(infos["byteorder"]).strip() != b"little":
        raise _damaged(path, "numbers with the highest byte first")

    def parsed(name: str) -> Any:
        if name not in infos:
            raise _unsafe(path, f"no {name}, so pickled tensors")
        if infos[name].file_size > _LONGEST_JSON:
            raise _damaged(path, f"{infos[name].file_size} bytes of JSON")
        return json.loads(file.read(infos[name]))

    program = parsed("models/model.json")["graph_module"]
    tensors: dict[str, Tensor] = {}
    stored = 0
    for kind in ("weights", "constants"):
        raw: dict[str, bytearray] = {}
        for name, payload in parsed(f"data/{kind}/model_{kind}_config.json")["config"].items():
            part = payload["path_name"]
            if payload["use_pickle"] or payload["tensor_meta"] is None:
                raise _unsafe(path, f"{name} as a pickle")
            if part not in raw:
                raw[part] = bytearray(file.read(infos[f"data/{kind}/{part}"]))
                stored += len(raw[part])
            if payload["tensor_meta"]["dtype"] not in DTYPES:
                rule = f"{path} must hold tensors of real or whole numbers"
                seen = f"{name} of {dtype_name(payload['tensor_meta']['dtype'])}"
                raise CheckpointError(rule, seen, "give your code as py:MODULE:FACTORY")
            tensor = _tensor(raw[part], payload["tensor_meta"])
            tensors[name] = torch.nn.Parameter(tensor, tensor.is_floating_point()) if payload["is_param"] else tensor
    check_shared(path, tensors, stored)
    return Archive(program, tensors)


def _tensor(raw: bytearray, meta: Mapping[str, Any]) -> Tensor:
    """The numbers, in the strides they have; no tensor may have more of them than there are bytes for."""
    if meta["layout"] != _STRIDED:
        raise ValueError(f"a tensor of layout {meta['layout']}")
    dtype = DTYPES[meta["dtype"]]
    sizes, strides = ([_whole(size) for size in meta[key]] for key in ("sizes", "strides"))
    if math.prod(sizes) * dtype.itemsize > len(raw):
        raise ValueError(f"{math.prod(sizes)} numbers in {len(raw)} bytes")
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.as_strided(sizes, strides, _whole(meta["storage_offset"]))


def dtype_name(number: int) -> str:
    """The dtype of that number, as people write it.

    >>> dtype_name(1), dtype_name(10), dtype_name(99)
    ('uint8', 'complex64', 'type 99')
    """
    if number in DTYPES:
        return str(DTYPES[number]).removeprefix("torch.")
    return _NOT_TAKEN.get(number, f"type {number}")


def _whole(size: Mapping[str, Any]) -> int:
    number = size["as_int"]
    if type(number) is not int or not 0 <= number < 2**48:
        raise ValueError(f"a size of {number}")
    return number


def _damaged(path: Path, seen: str) -> CheckpointError:
    rule = f"{path} must be a whole .pt2 archive, as torch.export.save writes it"
    return CheckpointError(rule, seen, "export the model again, with torch 2.8 or later")


def _unsafe(path: Path, seen: str) -> CheckpointError:
    rule = f"{path} must hold a graph and plain numbers, as nothing in a file is run or unpickled"
    return CheckpointError(
        rule, seen, "export the model again by torch.export.save, or give your code as py:MODULE:FACTORY"
    )
