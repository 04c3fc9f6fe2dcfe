"""What can be said about arguments before torch is imported or a file is read: a mistake costs no waiting."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pinchpoint.errors import ConfigError, DataError, StoreError, ThreatError
from pinchpoint.records import ThreatNorm
from pinchpoint.utils import config, numbers
from pinchpoint.utils.model_names import MODEL_PREFIXES, unknown_model
from pinchpoint.utils.study_files import scaled_studies, study_files

DATA_NAMES = ("digits", "mnist", "cifar10", "cifar100")
DATA_KINDS = ("npz", "imagefolder", "imagenet", "huggingface", "torchvision")
"""Those of ``data.config``, likewise."""
ENGINES = ("local", "ray", "slurm")
ROW_SUFFIXES = (".parquet", ".csv", ".jsonl")
SCHEMAS = ("study", "summary", "audit")
"""Those of ``study.outputs``, likewise."""


def data(text: str | None) -> str | None:
    """A data set that may be there: a known name, or a kind with a path where something is.

    Raises:
        DataError: for any other.
    """
    kind, colon, rest = (text or "").partition(":")
    if text is None or text in DATA_NAMES:
        return text
    if not (colon and kind in DATA_KINDS and rest):
        known = ", ".join((*DATA_NAMES, *(f"{name}:PATH" for name in DATA_KINDS[:-1])))
        raise DataError("a data set must be known by name", text, f"use {known} or torchvision:NAME")
    if kind != "torchvision" and not there(Path(rest).expanduser()):
        raise DataError("the file or folder of a data set must be there", rest, "check the path")
    return text


def size(text: str | None) -> str | None:
    """A size of inputs, SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, or none.

    Raises:
        ConfigError: for anything else.
    """
    if text is not None and not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){0,2}", text):
        rule = "an input size is SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH"
        raise ConfigError(rule, text, "write 32 or 3x32x32")
    return text


def device(text: str) -> str:
    """A word that names a device; whether it is there is seen later.

    Raises:
        ConfigError: for what is none.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,4})?", text):
        raise ConfigError("a device is auto, cpu, cuda or cuda:NUMBER", text, "use auto or cpu")
    return text


def chosen(*words: str) -> Callable[[str], str]:
    """A check that an option is one of these words."""

    def check(text: str) -> str:
        if text not in words:
            raise ConfigError(f"this option is one of {', '.join(words)}", text, "write one of those")
        return text

    return check


def threats(texts: list[str] | None) -> list[str] | None:
    """Threats in pixels, from 0 to 1: an l_inf budget above 1 leaves nothing of an image.

    Raises:
        ThreatError: for one that is not written so, or that is wider than the box.
    """
    for text in texts or ():
        norm, eps = numbers.threat(text, get_args(ThreatNorm))
        if norm == "linf" and eps > 1.0:
            remedy = f"write linf:{eps:g}/255 where parts of 255 are meant"
            raise ThreatError("an l_inf budget in pixels from 0 to 1 is at most 1", text, remedy)
    return texts


def normalisation(text: str | None) -> str | None:
    """How inputs are normalised, in a word, or none.

    Raises:
        ConfigError: for what is no such word.
    """
    if text is not None:
        numbers.normalisation(text)
    return text


def adversary(text: str | None) -> str | None:
    """One threat, or none."""
    threats(None if text is None else [text])
    return text


def model(text: str | None) -> str | None:
    """A name that some model may have: a path where something is, or one of the known prefixes.

    Raises:
        ConfigError: for any other.
    """
    if text is None or (text.partition(":")[0] in MODEL_PREFIXES and ":" in text):
        return text
    if not text or not there(text):
        raise unknown_model(text)
    return text


def condition(text: str | None) -> str | None:
    """A condition of --fail-if, or none."""
    from pinchpoint.auditing import conditions

    if text is not None:
        conditions.check(text)
    return text


def time(text: str | None) -> str | None:
    """A time, or none."""
    from pinchpoint.auditing import clock

    if text is not None:
        clock.seconds(text)
    return text


def study_file(path: Path) -> Path:
    """A study file that can be read and is YAML; what it says is seen later.

    Raises:
        ConfigError: for any other.
    """
    config.parsed(config.read_text(path, "a study file"), str(path))
    return path


def recipe(path: Path, values: Sequence[str]) -> None:
    """A recipe that can be read, and values in place of its own; the data set they name may be there.

    Raises:
        ConfigError: for any other.
        DataError: where the data set cannot be there.
    """
    content = config.parsed(config.read_text(path, "a recipe"), str(path))
    given = config.assignments(values)
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        named = config.overridden(content, given, str(path)).get("data")
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            data(named["name"])


def overrides(values: list[str] | None) -> list[str] | None:
    """Values to replace, written KEY=VALUE.

    Raises:
        ConfigError: for one that is not written so.
    """
    config.assignments(values or ())
    return values


def studies(texts: list[str]) -> list[str]:
    """Study files, or names of studies that come with the package.

    Raises:
        ConfigError: for what is neither.
    """
    for text in texts:
        if text not in study_files() and not there(text) and not Path(text).suffix:
            rule = "a study must be a file, or the name of one that comes with the package"
            raise ConfigError(rule, text, f"use one of: {', '.join(sorted(study_files()))}")
    return texts


def experiments(texts: list[str] | None) -> list[str] | None:
    """Names of experiments that can be reproduced.

    Raises:
        ConfigError: for a name that none has.
    """
    known = scaled_studies()
    for text in texts or ():
        if text not in (*known, "all"):
            raise ConfigError("an experiment must be known by name", text, f"use all, or of: {', '.join(known)}")
    return texts


def engine(text: str) -> str:
    """A name of an engine.

    Raises:
        ConfigError: for any other.
    """
    if text not in ENGINES:
        raise ConfigError("an engine must be known by name", text, "use local, ray or slurm")
    return text


def address(text: str | None, engine: str) -> None:
    """Refuse an address for an engine that has none.

    Raises:
        ConfigError: for that.
    """
    if text is not None and engine != "ray":
        raise ConfigError("an address is that of a Ray cluster", f"--engine {engine}", "add --engine ray")


def rows_file(text: str) -> str:
    """A file of a kind that rows can be written to.

    Raises:
        ConfigError: for any other.
    """
    if Path(text).suffix not in ROW_SUFFIXES:
        rule = f"rows are written to {', '.join(ROW_SUFFIXES[:-1])} or {ROW_SUFFIXES[-1]}"
        raise ConfigError(rule, Path(text).name, "give --out one of these endings")
    return text


def schema(text: str) -> str:
    """A name of a schema.

    Raises:
        ConfigError: for any other.
    """
    if text not in SCHEMAS:
        raise ConfigError("a schema must be known by name", text, f"use one of: {', '.join(SCHEMAS)}")
    return text


def output(path: Path | None) -> Path | None:
    """A folder that is there, or can be made: nothing above it is a file.

    Raises:
        StoreError: where something is.
    """
    for above in () if path is None else (path, *path.absolute().parents):
        if above.exists():
            if not above.is_dir():
                raise StoreError(f"{path} must be a folder", f"the file {above}", "choose another with --out")
            break
    return path


def there(path: str | Path) -> bool:
    """Whether something is at a path; what no path can be (too long, with a NUL) is nowhere."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
