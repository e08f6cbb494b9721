"""A search space: a file or a name, and what --set changes in it, checked value by value.

Every mistake is a SpaceError of one line: where it is, what was given, what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path as File
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from orchestrator import yaml_text
from orchestrator.axes import AXIS_NAMES, Axes, AxisName, Closed, Exclude, Recipe, Recovery, StopRule
from orchestrator.config import TRAIN_FIELDS
from orchestrator.errors import SpaceError, unknown
from orchestrator.stops import WITHIN
from orchestrator.values import MAX_POINTS, RANGE, as_list
from orchestrator.yaml_text import MAX_BYTES, Document, Path, Plain

SPACES = File(__file__).parent / "spaces"
MAX_MESSAGE = 500  # characters; a value of any length may be in it
TECHNIQUE_AXES = ("criterion", "granularity", "scope")
LayerName = Annotated[str, Field(min_length=1, max_length=200)]


class Search(Closed):
    method: Literal["grid"] = "grid"


def _sorted_names(value: Plain) -> Plain:
    names = as_list(value)
    return sorted(set(names)) if all(isinstance(name, str) for name in names) else names


class Space(Closed):
    """A search space. `name`, `text` (the source) and `sets` (what --set changed) are no keys of a file."""

    version: Literal[1] = 1
    about: str = ""
    search: Search = Search()
    axes: Axes
    train: Recipe = Recipe()
    protect: Annotated[tuple[LayerName, ...], BeforeValidator(_sorted_names)] = ()
    recover: Recovery | None = None
    stop: StopRule | None = None
    stop_within: Annotated[tuple[AxisName, ...], BeforeValidator(_sorted_names)] = WITHIN
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(as_list)] = ()
    name: str
    text: str
    sets: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        """How many there are, exclusions included."""
        return math.prod(len(chosen) for chosen in self.axes.given().values())

    @property
    def recoveries(self) -> tuple[str, ...]:
        return self.axes.recover or (self.recover or "none",)

    @model_validator(mode="after")
    def _within_limits(self) -> Space:
        if self.recover is not None and self.axes.recover:
            raise ValueError("recover is given twice, at the top and as an axis; give it once")
        if self.points > MAX_POINTS:
            sizes = " x ".join(str(len(c)) for c in self.axes.given().values() if len(c) > 1)
            raise ValueError(f"{sizes} = {self.points:,} points; at most {MAX_POINTS:,} are allowed")
        return self


FILE_KEYS = tuple(key for key in Space.model_fields if key not in ("name", "text", "sets"))
SETTABLE = (*AXIS_NAMES, "protect")


def names() -> list[str]:
    """The named spaces."""
    return sorted(file.stem for file in SPACES.glob("*.yaml"))


def load_space(name_or_path: str, sets: Sequence[str] = ()) -> Space:
    """A named space or a file, with `sets` (`key=v1,v2`) in place of its own axes and fields.

    SpaceError for an unknown name, a file that cannot be read, and anything in it that is not allowed.
    """
    file = SPACES / f"{name_or_path}.yaml" if name_or_path in names() else File(name_or_path)
    text = _text_of(file, name_or_path)
    document = yaml_text.read(text, name_or_path)
    if not isinstance(document.data, dict):
        raise SpaceError(f"{document.where(())}: a space is a mapping with the key axes")
    for key in document.data.keys() - set(FILE_KEYS):
        raise SpaceError(f"{document.where((key,))}: {unknown('key', key, FILE_KEYS)}")
    data, origins = _with_sets(document.data, sets)
    try:
        return Space.model_validate({**data, "name": file.stem, "text": text, "sets": tuple(sets)})
    except ValidationError as error:
        raise _space_error(error, document, origins) from error


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a space file, for editors."""
    schema = Space.model_json_schema()
    schema["properties"] = {key: schema["properties"][key] for key in FILE_KEYS}
    schema["required"] = [key for key in schema["required"] if key in FILE_KEYS]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _text_of(file: File, given: str) -> str:
    try:
        if not file.is_file():
            if file.suffix in (".yaml", ".yml") or "/" in given:
                raise SpaceError(f"{given}: there is no such file; named spaces are {', '.join(names())}")
            raise SpaceError(unknown("space", given, names()))
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        return content.decode("utf-8-sig") if len(content) <= MAX_BYTES else " " * len(content)
    except UnicodeDecodeError as error:
        raise SpaceError(f"{given}: byte {error.start} is no UTF-8; write the file as UTF-8 text") from error
    except (OSError, ValueError) as error:
        raise SpaceError(f"{given[:200]!r} cannot be read: {error}") from error


def _with_sets(data: dict[str, Plain], sets: Sequence[str]) -> tuple[dict[str, Plain], dict[Path, str]]:
    """The data with what is set in its place, and for each path that was set the --set behind it."""
    origins: dict[Path, str] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or key not in SETTABLE:
            hint = unknown("key", key, SETTABLE) if equals else "write key=value or key=v1,v2"
            raise SpaceError(f"--set {item[:80]}: {hint}")
        chosen = [yaml_text.read(part, f"--set {item[:80]}").data for part in _split(text)]
        if not chosen and key != "protect":
            raise SpaceError(f"--set {item[:80]}: no value is given; write {key}=v1,v2")
        path, data = _replaced(data, key, chosen, set(origins))
        origins[path] = f"--set {item[:80]}"
    return data, origins


def _replaced(
    data: dict[str, Plain], key: str, chosen: list[Plain], kept: set[Path]
) -> tuple[Path, dict[str, Plain]]:
    """(where the values stand now, the new data); what they take the place of is gone, save for `kept`."""
    group, _, field = key.rpartition(".")
    if key == "protect":
        return (key,), {**data, key: chosen}
    rivals = {"technique": TECHNIQUE_AXES, **dict.fromkeys(TECHNIQUE_AXES, ("technique",))}.get(key, ())
    gone = {key, *(rival for rival in rivals if ("axes", rival) not in kept)}
    given = data.get("axes", {})
    if not isinstance(given, dict):  # a mistake of the file, which is told with its line
        return ("axes", key), data
    axes = {name: values for name, values in given.items() if name not in gone}
    data = {**data, "axes": axes}
    if key == "recover":
        data.pop("recover", None)
    train = data.get("train", {})
    alone = len(chosen) == 1 and not RANGE.fullmatch(str(chosen[0]))
    if group == "train" and alone and isinstance(train, dict):
        return ("train", field), {**data, "train": {**train, field: chosen[0]}}
    axes[key] = chosen
    return ("axes", key), data


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes; parts that are blank are left out."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _space_error(error: ValidationError, document: Document, origins: dict[Path, str]) -> SpaceError:
    """The first mistake, unknown keys before all others: they explain what is missing."""
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    path: Path = first["loc"]
    place = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    dotted = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in path))
    if first["type"] == "extra_forbidden":
        message = unknown("key", str(path[-1]), _keys_at(path[:-1]))
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
    if path[0] == "train":
        return TRAIN_FIELDS
    return ("method",) if path[0] == "search" else AXIS_NAMES
