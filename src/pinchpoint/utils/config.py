"""Configurations from YAML files: read whole, validated whole, and what is wrong said in one sentence.

Keys may be overridden by dotted paths, ``train.epochs=5`` on a command line.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError
from pydantic_core import ErrorDetails

from pinchpoint.errors import ConfigError, PinchpointError, brief
from pinchpoint.utils.numbers import number

_Model = TypeVar("_Model", bound=BaseModel)


class StrictModel(BaseModel):
    """A section of a configuration: frozen, and a key it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Raises:
        ConfigError: where there is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} must be a readable text file", f"{path} ({error})", "check the path") from None


def mapping(text: str, where: str, keys: str) -> dict[str, Any]:
    """YAML text that holds a mapping.

    >>> mapping("train: {epochs: 5}", "the file", "train")
    {'train': {'epochs': 5}}

    Raises:
        ConfigError: where it is not YAML, gives a key twice or holds something else.
    """
    content = parsed(text, where)
    if not isinstance(content, dict):
        seen = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{where} must be a mapping with {keys}", seen, "see the README")
    return content


def parsed(text: str, where: str) -> Any:
    """What YAML text holds.

    >>> parsed("[1, a]", "the file")
    [1, 'a']

    Raises:
        ConfigError: where it is not YAML, is nested without end or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        said = (getattr(error, "context", None), getattr(error, "problem", None))
        problem = (
            "too many brackets in brackets" if isinstance(error, RecursionError) else ", ".join(filter(None, said))
        )
        seen = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem or str(error)
        raise ConfigError(f"{where} must be YAML", seen, "mend the file there") from None


def overridden(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of ``base`` with the values at dotted paths replaced.

    >>> overridden({"train": {"epochs": 5}}, {"train.epochs": 6, "model.rank": 4}, "the file")
    {'train': {'epochs': 6}, 'model': {'rank': 4}}
    """
    content: dict[str, Any] = copy.deepcopy(dict(base))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{where}: '{path}' must be a path into the configuration", parent, "check the key")
        node[last] = copy.deepcopy(value)
    return content


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Overrides as people write them on a command line, values in YAML.

    >>> assignments(["train.epochs=5", "model.hidden=[64, 64]"])
    {'train.epochs': 5, 'model.hidden': [64, 64]}
    """
    found = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError("an override is written key=value", text, "write for example train.epochs=5")
        try:
            found[path.strip()] = yaml.load(value, Loader=_UniqueKeys)
        except _YAML_ERRORS:
            raise ConfigError(f"the value of {path.strip()} must be YAML", value, "put it in quotes") from None
    return found


def fraction(value: object) -> object:
    """8/255, as people write budgets, is text in YAML; anything else is left as it is.

    >>> fraction("1/4"), fraction("a"), fraction(0.5)
    (0.25, 'a', 0.5)
    """
    if isinstance(value, str):
        with suppress(ValueError, ZeroDivisionError, OverflowError):
            return number(value)
    return value


def validate(kind: type[_Model], content: object, where: str) -> _Model:
    """The content as a model; the first thing that does not fit, in one sentence that begins with ``where``."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        # a misspelt key explains a missing one
        problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
        inner = problem.get("ctx", {}).get("error")
        place = ".".join(walk(kind, problem["loc"])[0])
        if isinstance(inner, PinchpointError):
            at = f"{where}, {place}" if place else where
            raise ConfigError(f"{at}: {inner.rule}", inner.value, inner.remedy) from None
        if problem["type"] == "extra_forbidden":
            known = _keys_at(kind, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            remedy = f"perhaps {close[0]} is meant" if close else f"known here: {', '.join(known) or 'none'}"
            if (key := str(problem["loc"][-1]).partition(":"))[0] in known:  # {flip:true} is one long key to YAML
                remedy = f"put a space after the colon, {key[0]}: {key[2]}"
            raise ConfigError(f"{where}: every key must be known", place, remedy) from None
        value = (
            "nothing" if problem["type"] == "missing" or problem["input"] is None else brief(_quoted(problem["input"]))
        )
        if "field" in (context := problem.get("ctx", {})):  # one field decides what the others may be
            place, value = f"{place}.{context['field']}", brief(_quoted(problem["input"].get(context["field"])))
        raise ConfigError(
            f"{where}: {place}: {inner or _PLAIN.get(problem['type'], problem['msg'])}", value, _remedy(problem)
        ) from None


def _quoted(value: object) -> object:
    """Text in quotes, of bounded length; anything else as it is."""
    return repr(value[:1000]) if isinstance(value, str) else value


def _remedy(problem: ErrorDetails) -> str:
    """What to write instead, where pydantic knows it."""
    limits = problem.get("ctx", {})
    if "choices" in limits:
        close = difflib.get_close_matches(
            brief(problem["input"].get(limits["field"])), limits["choices"], n=1, cutoff=0.5
        )
        return f"perhaps {close[0]} is meant" if close else "choose one of them"
    if "expected" in limits:
        return f"use {limits['expected']}"
    for key, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if key in limits:
            return f"use {words} {limits[key]:g}"
    return "add it" if problem["type"] == "missing" else "correct it"


_PLAIN = {
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "string_type": "Input should be text (put it in quotes)",
    "string_pattern_mismatch": "Input should be letters, digits, - and _",
}
"""Where pydantic speaks of Python, what a study file is told instead."""


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at a place."""
    model = walk(kind, location)[1]
    return [] if model is None else list(model.model_fields)


def walk(kind: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """A place in a model as its keys alone, without the tags of unions; and the model that is there."""
    place: list[str] = []
    here: type[BaseModel] | None = kind
    tagged: dict[str, type[BaseModel]] = {}
    for part in location:
        if part in tagged:
            here, tagged = tagged[str(part)], {}
            continue
        place.append(str(part))
        if isinstance(part, str) and here is not None and part in here.model_fields:
            tagged = dict(_tags(here.model_fields[part].annotation))
            here = next(iter(_models(here.model_fields[part].annotation)), None)
    return place, here


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models an annotation names, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _tags(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Models by the tags under which a union lists them."""
    if get_origin(annotation) is Annotated:
        model, *notes = get_args(annotation)
        yield from ((note.tag, model) for note in notes if isinstance(note, Tag))
    for part in get_args(annotation):
        yield from _tags(part)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice instead of keeping the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"key '{key.value}' is given twice", key.start_mark)
                seen.add(key.value)
        return node


# what PyYAML lets through for values such as 2020-13-45, !!int x, !!timestamp x, !!bool x, and for endless nesting
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
