"""Load a search space from a name or a file, with overrides; list the values of its axes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from orchestrator.config import DEFAULT_GROUP_BY, TRAIN_FIELDS
from orchestrator.errors import SpaceError, unknown_name
from orchestrator.formatting import first_control
from orchestrator.space import hyperparameters, yaml_loader
from orchestrator.space.overrides import SETTABLE as SETTABLE
from orchestrator.space.overrides import TECHNIQUE_AXES, with_sets
from orchestrator.space.recipe import FIELD as NAMED_RECIPE
from orchestrator.space.recipe import Recipe, TrainKey, with_batch_size
from orchestrator.space.schema import AXIS_NAMES, Axes, AxisName, Exclude, Search
from orchestrator.space.types import Integer, Recovery, StopRule, StrictModel, Version
from orchestrator.space.values import MAX_POINTS, Choice, Range, Value, as_list, listed_values
from orchestrator.space.yaml_loader import MAX_BYTES, Document, Path, Plain
from orchestrator.system.files import read_regular
from orchestrator.trial.weight_transfer import SourceModelInfo
from pruning.registry import parse_method
from pruning.user_code import own_code

SPACES = File(__file__).parent / "included"
MAX_MULTIPLE = 4096  # of the units that are left of a layer
MAX_MESSAGE = 500  # characters; a value of any length may be in it
LayerName = Annotated[str, Field(min_length=1, max_length=200)]
Lists = Mapping[str, tuple[Any, ...]]  # an axis's name and its values
Chooser = Callable[[str, Choice], Value]  # (axis or METHOD.OPTION, its choice) -> a single value of it


def _sorted_names(value: Plain) -> Plain:
    names = as_list(value)
    return sorted(set(names)) if all(isinstance(name, str) for name in names) else names


LayerNames = Annotated[tuple[LayerName, ...], BeforeValidator(_sorted_names)]


class Space(StrictModel):
    """A search space. The last four fields are not keys of a file.

    `name` is that of the file, `text` its content, `sets` the --set options that changed it, and
    `source_model` the network of --from.
    """

    version: Version = 1
    about: str = ""
    search: Search = Search()
    axes: Axes
    train: TrainKey = Recipe()
    protect: LayerNames = ()
    only: LayerNames = ()
    round_to: Annotated[Integer, Field(ge=1, le=MAX_MULTIPLE)] = 1
    recover: Recovery | None = None
    stop: StopRule | None = None
    stop_within: Annotated[tuple[AxisName, ...], BeforeValidator(_sorted_names)] = DEFAULT_GROUP_BY
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(as_list)] = ()
    name: str
    text: str
    sets: tuple[str, ...] = ()
    source_model: SkipJsonSchema[InstanceOf[SourceModelInfo] | None] = None

    @property
    def points(self) -> int:
        """The number of points: of a grid with its exclusions, of a search to find, times its seeds."""
        if self.search.method != "grid":
            return self.search.points * len(self.axes.seed)
        return math.prod(self._sizes())

    @property
    def recoveries(self) -> tuple[str, ...]:
        return self.axes.recover or (self.recover or "none",)

    def choices(self) -> dict[str, Choice]:
        """Return the choice of every axis, `recover` too, and `technique` or the axes it stands for."""
        choices = {**self.axes.non_empty(), "recover": self.recoveries}
        if any(axis in choices for axis in TECHNIQUE_AXES):
            return {"criterion": ("magnitude",), "granularity": ("weight",), "scope": ("global",), **choices}
        return {"technique": ("weight",), **choices}

    def _sizes(self) -> Iterator[int]:
        for axis, choice in self.choices().items():
            if isinstance(choice, tuple):
                if axis in hyperparameters.METHOD_REGISTRIES:
                    yield hyperparameters.count_texts(axis, choice, self.axes.options)
                else:
                    yield len(choice)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_batch_size(cls, data: Any) -> Any:  # plain YAML, of any type
        return with_batch_size(data)

    @model_validator(mode="after")
    def _check_space(self) -> Space:
        if self.recover is not None and self.axes.recover:
            raise ValueError("recover is given twice, at the top and as an axis; give it once")
        for key in self.axes.options:
            if reason := hyperparameters.unused_reason(key, self.choices()):
                raise _LocatedError(("axes", key), reason)
        if self.search.method == "grid":
            self._check_no_ranges()
        if self.points > MAX_POINTS:
            grid = self.search.method == "grid"
            sizes = self._sizes() if grid else (self.search.points, len(self.axes.seed))
            product = " x ".join(str(size) for size in sizes if size > 1)
            raise ValueError(f"{product} = {self.points:,} points; at most {MAX_POINTS:,} are allowed")
        return self

    def _check_no_ranges(self) -> None:
        for name, choice in {**self.choices(), **self.axes.options}.items():
            if isinstance(choice, Range):
                reason = f"a grid takes a list, and {choice} is a range; give a list, or search: "
                raise _LocatedError(("axes", name), f"{reason}{{method: random, trials: 60}}")


class _LocatedError(ValueError):
    """An error of the whole space, with the `path` in the file that pydantic cannot know."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


INTERNAL_FIELDS = ("name", "text", "sets", "source_model")
FILE_KEYS = tuple(key for key in Space.model_fields if key not in INTERNAL_FIELDS)


def names() -> list[str]:
    """Return the names of the spaces of this package, sorted."""
    return sorted(file.stem for file in SPACES.glob("*.yaml"))


def load_space(name_or_path: str, sets: Sequence[str] = ()) -> Space:
    """Load a named space or a file; `sets` (`key=v1,v2`) replace its axes and fields.

    Paths of files of one's own are relative to the space file, in a named space to the current folder.

    Raises SpaceError, with file and line, for an unknown name, a file that cannot be read, and anything in it
    that is not allowed.
    """
    file = SPACES / f"{name_or_path}.yaml" if name_or_path in names() else File(name_or_path)
    text = _read_text(file, name_or_path)
    folder = File.cwd() if name_or_path in names() else file.parent
    return parse_space(text, sets, name=file.stem, where=name_or_path, folder=folder)


def parse_space(text: str, sets: Sequence[str] = (), *, name: str, where: str, folder: File) -> Space:
    """Parse the text of a space file, as `load_space` does; `where` names it in errors.

    Paths of files of one's own are relative to `folder`.
    """
    if first_control(name) is not None:
        raise SpaceError(
            f"{where[:200]!r}: a space is called by its file, and this name has control characters; rename it"
        )
    document = yaml_loader.load_yaml(text, where, multiline_path=("about",))
    if not isinstance(document.data, dict):
        raise SpaceError(f"{document.location(())}: a space is a mapping with the key axes")
    for key in document.data.keys() - set(FILE_KEYS):
        raise SpaceError(f"{document.location((key,))}: {unknown_name('key', key, FILE_KEYS)}")
    with own_code.relative_to(folder):
        data, origins = with_sets(document.data, sets)
        try:
            return Space.model_validate({**data, "name": name, "text": text, "sets": tuple(sets)})
        except ValidationError as error:
            raise _space_error(error, document, origins) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a space file, for editors."""
    schema = Space.model_json_schema()
    schema["properties"] = {key: schema["properties"][key] for key in FILE_KEYS}
    schema["required"] = [key for key in schema["required"] if key in FILE_KEYS]
    axes = schema["$defs"]["Axes"]
    options = axes["properties"].pop(hyperparameters.FIELD)
    pattern = "|".join(name.replace(".", r"\.") for name in hyperparameters.names())
    axes["patternProperties"] = {f"^({pattern})$": options["additionalProperties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read_text(file: File, name_or_path: str) -> str:
    try:
        if not file.exists():
            if file.suffix in (".yaml", ".yml") or "/" in name_or_path:
                raise SpaceError(
                    f"{name_or_path}: there is no such file; named spaces are {', '.join(names())}"
                )
            raise SpaceError(unknown_name("space", name_or_path, names()))
        content = read_regular(file, at_most=MAX_BYTES)
        return content.decode("utf-8-sig") if len(content) <= MAX_BYTES else " " * len(content)
    except UnicodeDecodeError as error:
        raise SpaceError(
            f"{name_or_path}: byte {error.start} is no UTF-8; write the file as UTF-8 text"
        ) from error
    except OSError as error:
        raise SpaceError(f"{name_or_path[:200]} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpaceError(f"{name_or_path[:200]!r} cannot be read: {error}") from error


def _space_error(error: ValidationError, document: Document, origins: dict[Path, str]) -> SpaceError:
    """Return the first error with its file and line; an unknown key first, as it explains a missing one."""
    first = min(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    path: Path = cause.path if isinstance(cause, _LocatedError) else first["loc"]
    path = path[:1] + path[2:] if path[:2] == ("axes", hyperparameters.FIELD) else path
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    dotted = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path)))
    if first["type"] == "extra_forbidden":
        message = unknown_name("key", str(path[-1]), _keys_at(path[:-1]))
    elif first["type"] == "missing":
        message = f"{dotted} is missing"
    elif first["type"] == "value_error":
        message = ": ".join(filter(None, (dotted, str(first["ctx"]["error"]))))
    else:
        message = f"{dotted} is {first['input']!r:.80}; {first['msg'][0].lower()}{first['msg'][1:]}"
    return SpaceError(f"{origin or document.location(path)}: {' '.join(message.split())[:MAX_MESSAGE]}")


def _keys_at(path: Path) -> Sequence[str]:
    if not path:
        return FILE_KEYS
    if path[0] in ("train", "search"):
        return (*TRAIN_FIELDS, NAMED_RECIPE) if path[0] == "train" else tuple(Search.model_fields)
    return (*AXIS_NAMES, *hyperparameters.names()) if path[0] == "axes" else AXIS_NAMES


def grid_lists(space: Space) -> Lists:
    """Return every axis's values; methods with every combination of the listed values of their options."""
    lists = {axis: listed_values(choice) for axis, choice in space.choices().items()}
    return {
        axis: hyperparameters.expand_texts(axis, texts, space.axes.options)
        if axis in hyperparameters.METHOD_REGISTRIES
        else texts
        for axis, texts in lists.items()
    }


def select(space: Space, choose: Chooser) -> Lists:
    """Return a single value for every axis but the seed, by `choose` where there is a choice.

    `choose` is called axis by axis; for an option right after its method, only where that was chosen.
    """
    lists: dict[str, tuple[Value, ...]] = {}
    for axis, choice in space.choices().items():
        if axis == "seed":
            lists[axis] = listed_values(choice)
            continue
        value = _select_value(axis, choice, choose)
        if axis in hyperparameters.METHOD_REGISTRIES:
            name = parse_method(value)[0]
            choices = hyperparameters.hyperparameters_of(axis, value, space.axes.options)
            options = {o: _select_value(f"{name}.{o}", choices[o], choose) for o in choices}
            value = hyperparameters.with_options(axis, value, options) if options else value
        lists[axis] = (value,)
    return lists


def _select_value(name: str, choice: Choice, choose: Chooser) -> Value:
    return choice[0] if isinstance(choice, tuple) and len(choice) == 1 else choose(name, choice)
