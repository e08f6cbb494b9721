"""Load a search space from a name or a file, with overrides."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path as File
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from orchestrator.config import DEFAULT_GROUP_BY, TRAIN_FIELDS
from orchestrator.errors import SpaceError, unknown_name
from orchestrator.formatting import first_control
from orchestrator.space import hyperparameters, yaml_loader
from orchestrator.space.overrides import SETTABLE as SETTABLE
from orchestrator.space.overrides import TECHNIQUE_AXES, with_sets
from orchestrator.space.ranges import Choice, Range
from orchestrator.space.schema import AXIS_NAMES, Axes, AxisName, Exclude, Recipe, Search
from orchestrator.space.types import Closed, Recovery, StopRule
from orchestrator.space.values import MAX_POINTS, as_list
from orchestrator.space.yaml_loader import MAX_BYTES, Document, Path, Plain
from orchestrator.system.files import read_regular
from orchestrator.trial.weight_transfer import SourceModelInfo

SPACES = File(__file__).parent.parent / "spaces"
MAX_MESSAGE = 500  # characters; a value of any length may be in it
LayerName = Annotated[str, Field(min_length=1, max_length=200)]


def _sorted_names(value: Plain) -> Plain:
    names = as_list(value)
    return sorted(set(names)) if all(isinstance(name, str) for name in names) else names


class Space(Closed):
    """A search space. No keys of a file: `name`, `text` (the source), `sets` (what --set changed).

    `ancestor`, of --from, is none either.
    """

    version: Literal[1] = 1
    about: str = ""
    search: Search = Search()
    axes: Axes
    train: Recipe = Recipe()
    protect: Annotated[tuple[LayerName, ...], BeforeValidator(_sorted_names)] = ()
    recover: Recovery | None = None
    stop: StopRule | None = None
    stop_within: Annotated[tuple[AxisName, ...], BeforeValidator(_sorted_names)] = DEFAULT_GROUP_BY
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(as_list)] = ()
    name: str
    text: str
    sets: tuple[str, ...] = ()
    ancestor: SkipJsonSchema[InstanceOf[SourceModelInfo] | None] = None

    @property
    def points(self) -> int:
        """How many a grid has, exclusions included; how many a search is to find, over its seeds."""
        if self.search.method != "grid":
            return self.search.points * len(self.axes.seed)
        return math.prod(self._sizes())

    @property
    def recoveries(self) -> tuple[str, ...]:
        return self.axes.recover or (self.recover or "none",)

    def choices(self) -> dict[str, Choice]:
        """The choice of every axis, with `recover`, and either `technique` or the three it stands for."""
        found = {**self.axes.given(), "recover": self.recoveries}
        if any(axis in found for axis in TECHNIQUE_AXES):
            return {"criterion": ("magnitude",), "granularity": ("weight",), "scope": ("global",), **found}
        return {"technique": ("weight",), **found}

    def _sizes(self) -> Iterator[int]:
        for axis, chosen in self.choices().items():
            if isinstance(chosen, tuple):
                tuned = axis in hyperparameters.METHOD_REGISTRIES
                yield hyperparameters.count(axis, chosen, self.axes.options) if tuned else len(chosen)

    @model_validator(mode="after")
    def _within_limits(self) -> Space:
        if self.recover is not None and self.axes.recover:
            raise ValueError("recover is given twice, at the top and as an axis; give it once")
        for key in self.axes.options:
            if reason := hyperparameters.unused_reason(key, self.choices()):
                raise _PlacedError(("axes", key), reason)
        if self.search.method == "grid":
            self._refuse_ranges()
        if self.points > MAX_POINTS:
            grid = self.search.method == "grid"
            sizes = self._sizes() if grid else (self.search.points, len(self.axes.seed))
            told = " x ".join(str(size) for size in sizes if size > 1)
            raise ValueError(f"{told} = {self.points:,} points; at most {MAX_POINTS:,} are allowed")
        return self

    def _refuse_ranges(self) -> None:
        for name, chosen in {**self.choices(), **self.axes.options}.items():
            if isinstance(chosen, Range):
                reason = f"a grid takes a list, and {chosen} is a range; give a list, or search: "
                raise _PlacedError(("axes", name), f"{reason}{{method: random, trials: 60}}")


class _PlacedError(ValueError):
    """A mistake that is found late; `path` is its place in the file."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


NO_KEYS = ("name", "text", "sets", "ancestor")
FILE_KEYS = tuple(key for key in Space.model_fields if key not in NO_KEYS)


def names() -> list[str]:
    """The named spaces."""
    return sorted(file.stem for file in SPACES.glob("*.yaml"))


def load_space(name_or_path: str, sets: Sequence[str] = ()) -> Space:
    """A named space or a file, with `sets` (`key=v1,v2`) in place of its own axes and fields.

    SpaceError for an unknown name, a file that cannot be read, and anything in it that is not allowed.
    """
    file = SPACES / f"{name_or_path}.yaml" if name_or_path in names() else File(name_or_path)
    text = _text_of(file, name_or_path)
    if first_control(file.stem) is not None:
        raise SpaceError(
            f"{name_or_path[:200]!r}: a space is called by its file, and this name has control characters; "
            "rename it"
        )
    document = yaml_loader.read(text, name_or_path, of_lines=("about",))
    if not isinstance(document.data, dict):
        raise SpaceError(f"{document.where(())}: a space is a mapping with the key axes")
    for key in document.data.keys() - set(FILE_KEYS):
        raise SpaceError(f"{document.where((key,))}: {unknown_name('key', key, FILE_KEYS)}")
    data, origins = with_sets(document.data, sets)
    try:
        return Space.model_validate({**data, "name": file.stem, "text": text, "sets": tuple(sets)})
    except ValidationError as error:
        raise _space_error(error, document, origins) from error


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a space file, for editors."""
    schema = Space.model_json_schema()
    schema["properties"] = {key: schema["properties"][key] for key in FILE_KEYS}
    schema["required"] = [key for key in schema["required"] if key in FILE_KEYS]
    axes = schema["$defs"]["Axes"]
    options = axes["properties"].pop(hyperparameters.FIELD)
    known = "|".join(name.replace(".", r"\.") for name in hyperparameters.names())
    axes["patternProperties"] = {f"^({known})$": options["additionalProperties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _text_of(file: File, given: str) -> str:
    try:
        if not file.exists():
            if file.suffix in (".yaml", ".yml") or "/" in given:
                raise SpaceError(f"{given}: there is no such file; named spaces are {', '.join(names())}")
            raise SpaceError(unknown_name("space", given, names()))
        content = read_regular(file, at_most=MAX_BYTES)
        return content.decode("utf-8-sig") if len(content) <= MAX_BYTES else " " * len(content)
    except UnicodeDecodeError as error:
        raise SpaceError(f"{given}: byte {error.start} is no UTF-8; write the file as UTF-8 text") from error
    except OSError as error:
        raise SpaceError(f"{given[:200]} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpaceError(f"{given[:200]!r} cannot be read: {error}") from error


def _space_error(error: ValidationError, document: Document, origins: dict[Path, str]) -> SpaceError:
    """The first mistake, unknown keys before all others: they explain what is missing."""
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    path: Path = cause.path if isinstance(cause, _PlacedError) else first["loc"]
    path = path[:1] + path[2:] if path[:2] == ("axes", hyperparameters.FIELD) else path
    place = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    dotted = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in path))
    if first["type"] == "extra_forbidden":
        message = unknown_name("key", str(path[-1]), _keys_at(path[:-1]))
    elif first["type"] == "missing":
        message = f"{dotted} is missing"
    elif first["type"] == "value_error":
        message = ": ".join(filter(None, (dotted, str(first["ctx"]["error"]))))
    else:
        message = f"{dotted} is {first['input']!r:.80}; {first['msg'][0].lower()}{first['msg'][1:]}"
    return SpaceError(f"{place or document.where(path)}: {' '.join(message.split())[:MAX_MESSAGE]}")


def _keys_at(path: Path) -> Sequence[str]:
    if not path:
        return FILE_KEYS
    if path[0] in ("train", "search"):
        return TRAIN_FIELDS if path[0] == "train" else tuple(Search.model_fields)
    return (*AXIS_NAMES, *hyperparameters.names()) if path[0] == "axes" else AXIS_NAMES
