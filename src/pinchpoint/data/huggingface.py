"""Image data sets that Hugging Face's ``datasets`` saved to disk. Nothing is downloaded and no code of theirs is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pinchpoint.data.listing import MOST_CLASSES, PARTS, Encoded, Listing, Role, listing, part_of
from pinchpoint.errors import ConfigError, DataError

_WHOLE: Role = "whole"


class Table:
    """The image column of a data set, its images still encoded."""

    def __init__(self, rows: Any, column: str, name: str) -> None:
        self.rows, self.column, self.name = rows, column, name

    def __getitem__(self, row: int) -> Encoded:
        found = self.rows[row][self.column] or {}
        name = f"row {row} of {self.name}"
        if found.get("bytes") is not None:
            return Encoded(name, found["bytes"])
        path = found.get("path")
        if path is None or not Path(path).is_file():
            raise DataError(f"{name} must hold an image", path or "nothing", "save the data set with its images")
        return Encoded(path)

    def __len__(self) -> int:
        return len(self.rows)


def list_saved(root: Path, label_column: str | None = None) -> tuple[dict[Role, Listing], int | tuple[str, ...]]:
    """The images of a folder that ``save_to_disk`` wrote, by part, and the classes: their names, or how many.

    The images are those of the one column of images; the labels those of ``label_column``, or of the one column of class
    labels, or of the one called ``label``. A part whose labels are all -1 is left out: it has none.

    Raises:
        ConfigError: where ``datasets`` is not installed.
        DataError: where the folder is none of its own, or the columns are not such.
    """
    if importlib.util.find_spec("datasets") is None:
        rule = "huggingface:PATH needs datasets"
        raise ConfigError(rule, "an installation without it", "pip install 'pinchpoint[huggingface]'")
    import datasets

    if not root.is_dir():
        raise DataError("a folder that datasets saved must be there", str(root), "check the path")
    try:
        content = datasets.load_from_disk(str(root))
    except Exception as error:  # Arrow, JSON and datasets each have their own words
        seen = f"{root} ({(str(error) or type(error).__name__).splitlines()[0]})"
        raise DataError("huggingface:PATH must be a folder that save_to_disk wrote", seen, "save it again") from None
    parts = dict(content) if isinstance(content, datasets.DatasetDict) else {"": content}
    if any(split and part_of(split) is None for split in parts):
        raise DataError(
            f"{root} must have parts called {', '.join(PARTS)}, and no others", ", ".join(parts), "rename them"
        )
    listed: dict[Role, Listing] = {}
    classes: int | tuple[str, ...] = 0
    for split, rows in parts.items():
        role = (part_of(split) if split else None) or _WHOLE
        if len(rows) == 0:
            continue
        if role in listed:
            raise DataError(f"{root} may have one {role} part", ", ".join(parts), "save it with one of them")
        name = f"{root}/{split}" if split else str(root)
        image = _image_column(rows.features, datasets.Image, name)
        label = label_column or _label_column(rows.features, datasets.ClassLabel, name)
        labels = _labels(rows, label, name)
        if split != "" and bool((labels == -1).all()):
            continue
        if labels.min() < 0:
            raise DataError(f"the labels in {name} must count from 0", int(labels.min()), "encode the classes anew")
        names = tuple(getattr(rows.features[label], "names", None) or ())
        if labels.max() >= (len(names) or MOST_CLASSES):
            seen = f"{int(labels.max())} in {name}"
            raise DataError(f"labels must be below {len(names) or MOST_CLASSES}", seen, "encode the classes anew")
        classes = max((classes, names or int(labels.max()) + 1), key=_count)
        table = rows.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))
        listed[role] = listing(Table(table, image, name), labels)
    if not listed:
        raise DataError(f"{root} must have a part with samples and labels", ", ".join(parts) or "none", "save it again")
    return listed, classes


def _count(classes: int | tuple[str, ...]) -> int:
    return classes if isinstance(classes, int) else len(classes)


def _image_column(features: Any, kind: type, name: str) -> str:
    columns = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(columns) != 1:
        raise DataError(f"{name} must have one column of images", _shown(columns), "save it with one")
    return str(columns[0])


def _label_column(features: Any, kind: type, name: str) -> str:
    columns = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(columns) == 1:
        return str(columns[0])
    if "label" in features:
        return "label"
    raise DataError(f"{name} must have one column of class labels", _shown(columns), "name it by data.label_column")


def _shown(columns: list[str]) -> str:
    return ", ".join(columns) or "none"


def _labels(rows: Any, column: str, name: str) -> npt.NDArray[np.int64]:
    if column not in rows.features:
        raise DataError(f"{name} must have the column {column}", ", ".join(rows.features), "check data.label_column")
    labels = np.asarray(rows.with_format("numpy", columns=[column])[:][column])
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{name}'s column {column} must hold integers", str(labels.dtype), "encode the classes")
    return labels.astype(np.int64)
