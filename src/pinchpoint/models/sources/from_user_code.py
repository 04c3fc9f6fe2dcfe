"""A model that the user's own code makes: ``py:package.module:factory``. This runs that code, and the source says so."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from pinchpoint.errors import ConfigError, ModelError, PinchpointError
from pinchpoint.models.normalisation import Normalisation, parse_normalisation
from pinchpoint.models.sources.source import Source, checked, resized

_ABOUT = ("input_shape", "normalize")


def from_user(spec: str, rest: str, input_size: tuple[int, ...] | None, asked: Normalisation | None) -> Source:
    """What ``factory()`` of an importable module returns; the working directory is looked into first.

    The factory takes nothing and returns an ``nn.Module``, or that and a mapping with any of ``input_shape`` (channels,
    height, width) and ``normalize`` (a word as for ``--normalize``). It starts from seed 0. What it prints goes to stderr.

    Raises:
        ConfigError: where ``rest`` is not MODULE:FACTORY, the module is not there, or nothing says how large inputs are.
        ModelError: where the code fails, by its last line and place, or returns something else.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", rest):
        rule = "a model from your own code is py:MODULE:FACTORY, where FACTORY() returns an nn.Module"
        raise ConfigError(rule, spec, "write for example py:my_package.models:make")
    name, _, path = rest.partition(":")
    with _running(spec, name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: object = importlib.import_module(name)
        for part in path.split("."):
            made = getattr(made, part)
        made = made()  # type: ignore[operator]
    model, about = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(model, nn.Module) or not isinstance(about, Mapping):
        rule = f"{path} of {name} must return an nn.Module, or one and a mapping about it"
        raise ModelError(rule, f"a {type(made).__name__}", "return the model")
    if odd := [str(key) for key in about if key not in _ABOUT]:
        raise ModelError(
            f"what {path} of {name} says about its model is {' and '.join(_ABOUT)}", odd[0], "leave it out"
        )
    shape = _shape(spec, about.get("input_shape"), input_size)
    if asked is None and "normalize" in about:
        asked = parse_normalisation(str(about["normalize"]))
    notes = [f"your own code was run to make this model: {path} of {name}"]
    if asked is None:
        notes.append("nothing says how its inputs are normalised, so it is given pixels in [0, 1]")
    else:
        notes.append(f"inputs are pixels in [0, 1], normalised as you say: {asked}")
    with _running(spec, name):
        model = (asked or Normalisation()).before(model.cpu().eval(), shape).eval()
    source = Source(spec, model, shape, None, tuple(notes), normalisation=None if asked is None else str(asked))
    return checked(source, shape)


def _shape(spec: str, said: object, input_size: tuple[int, ...] | None) -> tuple[int, ...]:
    if said is None:
        if input_size is None:
            rule, remedy = (
                f"somebody must say what size the inputs of {spec} have",
                "give --input-size, for example 3x32x32",
            )
            raise ConfigError(rule, "no size", remedy)
        return input_size if len(input_size) != 2 else (3, *input_size)
    sizes = tuple(said) if isinstance(said, tuple | list) else ()
    if not sizes or not all(isinstance(size, int) and 0 < size < 100_000 for size in sizes):
        raise ModelError("input_shape must be whole numbers, for example (3, 32, 32)", said, "mend it")
    return resized(spec, sizes, input_size)


@contextlib.contextmanager
def _running(spec: str, module: str) -> Iterator[None]:
    """With the working directory first on the path (last from then on, for what is imported later), and one sentence for
    whatever the code does wrong, even where it wants to leave."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (PinchpointError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            rule = f"the module of {spec} must be importable from here"
            raise ConfigError(rule, f"no module {error.name} in {here}", "check the name, or go where it is") from None
        said = (str(error).strip() or "no word about it").splitlines()[0]
        where = _place(error, Path(here))
        raise ModelError(f"the code of {spec} must run", f"{type(error).__name__}: {said}{where}", "mend it") from error
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _place(error: BaseException, here: Path) -> str:
    """The last line that is the user's own, where there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        lines = [(error.filename, error.lineno)]
    else:
        lines = [
            (frame.filename, frame.lineno)
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and not frame.filename.startswith("<frozen")
        ]
    own = [line for line in lines if Path(line[0]).is_relative_to(here) and "site-packages" not in line[0]]
    if not (own or lines):
        return ""
    file, number = (own or lines)[-1]
    shown = Path(file).relative_to(here) if own else Path(file)
    return f" ({shown}, line {number})"
