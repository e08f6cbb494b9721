"""The axes of a space and the recipe of its trainings: which values each of them takes.

Values leave here in one form: methods as full text, amounts as fractions, numbers as int or float.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

import models
from orchestrator import techniques
from orchestrator.config import TRAIN_FIELDS, Train, method_text
from orchestrator.data import AUGMENTATIONS
from orchestrator.datasets import DATASETS, check_options, info
from orchestrator.errors import unknown
from orchestrator.recovery import recoveries
from orchestrator.training import LR_SCHEDULES, OPTIMIZERS
from pruning.criteria import criteria
from pruning.engine import GRANULARITIES
from pruning.registry import Registry, parse
from pruning.schedules import schedules
from pruning.step import SCOPES

T = TypeVar("T")
Value = Any  # plain YAML, before it is checked

MAX_POINTS = 1_000_000
MAX_TEXT = 1000  # of one value; a longer one is refused before it is parsed
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?")


def as_list(value: Value) -> list[Value]:
    """A list as it is, anything else as a list of one; `0..4` is written out, 4 included."""
    found: list[Value] = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        match = RANGE.fullmatch(item) if isinstance(item, str) else None
        if match is None:
            found.append(item)
            continue
        low, high = int(match[1]), int(match[2])
        if not 0 <= high - low < MAX_POINTS:
            raise ValueError(f"{item} is {max(0, high - low + 1)} values; a range has 1 to {MAX_POINTS}")
        found.extend(range(low, high + 1))
    return found


def amount(value: Value) -> float:
    """A fraction in [0, 1] out of a number or `25%`, which is divided by 100 exactly."""
    text = str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    number = text[:-1].rstrip() if text.endswith("%") else text
    if len(text) > MAX_TEXT or not NUMBER.fullmatch(number):
        raise ValueError(f"{value!r:.80} is no amount; give a fraction in [0, 1] or a percentage such as 25%")
    given = float(Decimal(number).scaleb(-2) if text.endswith("%") else Decimal(number))
    if 0 <= given <= 1:
        return given + 0.0  # -0.0 would have another key than 0.0
    hint = f"; {given / 100:g} or {given:g}%?" if 1 < given <= 100 and number == text else ""
    raise ValueError(f"{text} is no amount in [0, 1], or 0% to 100%{hint}")


def spec(value: Value, kind: str) -> tuple[str, dict[str, Value]]:
    """(name, options) of a method given as `name`, `name(a=1)` or `{method: name, a: 1}`."""
    if isinstance(value, Mapping) and isinstance(value.get("method"), str):
        name, options = parse(value["method"][:MAX_TEXT])
        return name, options | {key: option for key, option in value.items() if key != "method"}
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return parse(value)
    raise ValueError(f"{value!r:.80} is no {kind}; write name, name(option=value) or {{method: name, option: value}}")


def full_text(name: str, options: Mapping[str, Value]) -> str:
    """The full text form; lists and tuples, which mean the same, look the same."""
    text = method_text(name, {key: _listed(option) for key, option in options.items()})
    parse(text)  # ValueError for what has no text form: an infinite number
    return text


def model(value: Value) -> str:
    name, options = spec(value, "model")
    if name not in models.BUILDERS:
        raise ValueError(unknown("model", name, models.BUILDERS))
    return full_text(*models.resolve(name, **options))


def dataset(value: Value) -> str:
    """Options that are None, which stand for all of the images, are left out."""
    name, options = spec(value, "dataset")
    info(name)
    known = list(inspect.signature(check_options).parameters)[1:]
    for option in options.keys() - set(known):
        raise ValueError(unknown(f"option of {name}", option, known))
    given = {key: options[key] for key in known if options.get(key) is not None}
    classes, samples = given.get("classes"), given.get("samples_per_class")
    if classes is not None and not (isinstance(classes, (list, tuple)) and all(type(c) is int for c in classes)):
        raise ValueError(f"{name}: classes={classes!r:.80}; give a list of integers such as [0, 1]")
    if samples is not None and type(samples) is not int:
        raise ValueError(f"{name}: samples_per_class={samples!r:.80}; give an integer")
    check_options(name, classes=classes, samples_per_class=samples)
    return full_text(name, given)


def technique(value: Value) -> str:
    name, options = spec(value, "technique")
    techniques.resolve(name, options)
    return full_text(name, options)


def method(value: Value, registry: Registry) -> str:
    """The full text of a registered method."""
    name, options = spec(value, registry.kind)
    found = registry.get({**options, "method": name})
    return full_text(found.name, found.options)


def _listed(value: Value) -> Value:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _no_bool(value: Value) -> Value:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


def _known(kind: str, allowed: Collection[str], value: str) -> str:
    if value not in allowed:
        raise ValueError(unknown(kind, value, allowed))
    return value


class _OneOrMore:
    """A list of at least one value; a value alone is a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(as_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array, {"type": "string", "pattern": f"^{RANGE.pattern}$"}]}


def _text(*names: str) -> WithJsonSchema:
    """A method in an editor's eyes: text, or a mapping with `method`; the known names are examples."""
    mapping = {"type": "object", "properties": {"method": {"type": "string"}}, "required": ["method"]}
    return WithJsonSchema({"anyOf": [{"type": "string"}, mapping], "examples": list(names)})


_FRACTION = WithJsonSchema(
    {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]}
)
Axis = Annotated[tuple[T, ...], Field(min_length=1), _OneOrMore()]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False), AfterValidator(lambda x: x + 0.0)]

Model = Annotated[str, PlainValidator(model), _text(*models.BUILDERS)]
DatasetName = Annotated[str, PlainValidator(dataset), _text(*DATASETS)]
TechniqueName = Annotated[str, PlainValidator(technique), _text(*techniques.TECHNIQUES)]
Criterion = Annotated[str, PlainValidator(partial(method, registry=criteria)), _text(*criteria)]
Schedule = Annotated[str, PlainValidator(partial(method, registry=schedules)), _text(*schedules)]
Recovery = Annotated[str, PlainValidator(partial(method, registry=recoveries)), _text(*recoveries)]
