"""The values of an axis: brought into one canonical form, or a range of numbers to search.

Equal values get equal forms, however they were written: keys are made of them. All functions raise
ValueError for a value that is not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, GetPydanticSchema, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

import models
from orchestrator.config import method_text
from orchestrator.data.augmentation import SEPARATOR, augmentations, parse_augmentation
from orchestrator.data.datasets import DATASETS, check_options, info, unknown_dataset
from orchestrator.data.sources.registry import SELECTION, canonical_options, is_source
from orchestrator.errors import SpaceError, unknown_name
from orchestrator.space import techniques
from orchestrator.training.lr_schedules import lr_schedules
from pruning.amounts import amounts_text
from pruning.registry import Registry, parse_method
from pruning.target_amounts import QUANTITIES, canonical_target, is_target, quantity_hint
from pruning.user_code import own_code

T = TypeVar("T")
Value = Any  # plain YAML, before it is checked
Number = int | float
CheckList = Callable[[list[Value]], Sequence[Any]]  # a list as a file has it -> its values, typed

MAX_POINTS = 1_000_000
MAX_TEXT = 1000  # characters of one value; a longer one is refused before it is parsed
INTEGER_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")
OTHER_RANGE = re.compile(r"(\d{1,18})(?:-|:|\.{3})(\d{1,18})")  # as other programs write one
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?")
MAX_PATTERNS, MAX_NAME = 1000, 200  # of amounts by layer, and the characters of a name
AMOUNTS_EXAMPLE = '{"layer4.*": 75%, "*": 50%}'
RANGE_KEYS = ("low", "high", "log", "step")
RANGE_EXAMPLE = "{low: 0.5, high: 0.9}, with log: true or a step if wanted"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers where `low` is one.

    `log`: a number between 1 and 10 is as likely as one between 10 and 100. `step`: only low, low + step, ...
    """

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int)

    @property
    def last(self) -> Number:
        """The largest number of the range: `high`, or the last step below it."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return self.nearest(high - (high - low) % step)

    def nearest(self, number: Number | Decimal) -> Number:
        """Return the step nearest to a number.

        In decimal arithmetic, so that a step is written as a person would: 0.8, never 0.7999999999999999.
        """
        if self.step is None:
            return int(number) if self.is_integer else float(number)
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        nearest = low + round((Decimal(str(number)) - low) / step) * step
        return int(nearest) if self.is_integer else float(nearest)

    def contains(self, value: Value) -> bool:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        extra = ", log" if self.log else "" if self.step is None else f" by {self.step:g}"
        return f"{self.low:g} to {self.high:g}{extra}"


Choice = tuple[Value, ...] | Range  # what an axis takes: a list of values, or a range


def listed_values(choice: Choice) -> tuple[Value, ...]:
    """Return the values of a list; none of a range."""
    return choice if isinstance(choice, tuple) else ()


def as_list(value: Value) -> list[Value]:
    """Return a list as it is, any other value as a list of one; `0..4` becomes 0, 1, 2, 3, 4."""
    items: list[Value] = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        match = INTEGER_RANGE.fullmatch(item) if isinstance(item, str) else None
        if match is None:
            if isinstance(item, str) and (other := OTHER_RANGE.fullmatch(item)):
                raise ValueError(f"{item!r} is no number; a range is written {other[1]}..{other[2]}")
            items.append(item)
            continue
        low, high = int(match[1]), int(match[2])
        if not 0 <= high - low < MAX_POINTS:
            raise ValueError(f"{item} is {max(0, high - low + 1)} values; a range has 1 to {MAX_POINTS}")
        items.extend(range(low, high + 1))
    return items


def canonical_amount(value: Value) -> float | str:
    """Return a fraction in [0, 1] for a number or a percentage, and canonical text for a mapping.

    From layers and patterns to fractions, or from quantities to what may be left of them.
    """
    if not isinstance(value, Mapping):
        return _fraction(value)
    if is_target(value):
        return canonical_target(value)
    if is_range(value) and value.keys() <= set(RANGE_KEYS):
        raise ValueError(f"{value} is no amount; a range stands in the place of the list, not in it")
    if not value or len(value) > MAX_PATTERNS:
        raise ValueError(f"{len(value)} amounts by layer; give 1 to {MAX_PATTERNS}, {AMOUNTS_EXAMPLE}")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise ValueError(f"{name!r:.80} is no name or pattern of layers; write {AMOUNTS_EXAMPLE}")
    if quantities := [name for name in value if name in QUANTITIES]:
        other = next(name for name in value if name not in QUANTITIES)
        raise ValueError(f"{quantities[0]} is a quantity: {unknown_name('quantity', other, QUANTITIES)}")
    return amounts_text({name: _amount_of(name, amount) for name, amount in value.items()})


def _amount_of(name: str, value: Value) -> float:
    try:
        return _fraction(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}{quantity_hint([name])}") from error


def _fraction(value: Value) -> float:
    """Return a number as it is; `25%` is divided by 100 exactly."""
    text = str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    number = text[:-1].rstrip() if text.endswith("%") else text
    if len(text) > MAX_TEXT or not NUMBER.fullmatch(number):
        raise ValueError(f"{value!r:.80} is no amount; give a fraction in [0, 1] or a percentage such as 25%")
    amount = float(Decimal(number).scaleb(-2) if text.endswith("%") else Decimal(number))
    if 0 <= amount <= 1:
        return amount + 0.0  # -0.0 would have another key than 0.0
    hint = f"; {amount / 100:g} or {amount:g}%?" if 1 < amount <= 100 and number == text else ""
    raise ValueError(f"{text:.40} is no amount in [0, 1], or 0% to 100%{hint}")


def read_method(value: Value, kind: str) -> tuple[str, dict[str, Value]]:
    """Return (name, options) of a method written `name`, `name(a=1)` or `{method: name, a: 1}`."""
    if isinstance(value, Mapping) and isinstance(value.get("method"), str):
        name, options = parse_method(value["method"][:MAX_TEXT])
        return name, options | {key: option for key, option in value.items() if key != "method"}
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return parse_method(value)
    form = "name, name(option=value) or {method: name, option: value}"
    raise ValueError(f"{value!r:.80} is no {kind}; write {form}")


def canonical_text(name: str, options: Mapping[str, Value]) -> str:
    """Return the text of a method with its options; tuples, which mean the same as lists, become lists."""
    text = method_text(name, {key: _as_lists(option) for key, option in options.items()})
    parse_method(text)  # ValueError for what has no text form: an infinite number
    return text


def canonical_model(value: Value) -> str:
    """Return the canonical text of a model, every option in it."""
    name, options = read_method(value, "model")
    return canonical_text(*models.resolve(name, **options))


def canonical_dataset(value: Value) -> str:
    """Return the canonical text of a data set, without options that are None, which stand for all images.

    Of a source with options of its own, no file is looked at: whether it has these classes is for the plan.
    """
    name, options = read_method(value, "dataset")
    name = own_code.pinned(name) if own_code.is_own(name) else name
    if name not in DATASETS and not is_source(name):
        raise ValueError(unknown_dataset(name))
    own = {key: option for key, option in options.items() if key not in SELECTION} if is_source(name) else {}
    for option in options.keys() - own.keys() - set(SELECTION):
        raise ValueError(unknown_name(f"option of {name}", option, SELECTION))
    options = {key: options[key] for key in SELECTION if options.get(key) is not None}
    classes, samples = options.get("classes"), options.get("samples_per_class")
    if classes is not None and not (
        isinstance(classes, (list, tuple)) and all(type(label) is int for label in classes)
    ):
        raise ValueError(f"{name}: classes={classes!r:.80}; give a list of integers such as [0, 1]")
    if samples is not None and type(samples) is not int:
        raise ValueError(f"{name}: samples_per_class={samples!r:.80}; give an integer")
    if is_source(name):
        options = {**canonical_options(name, own), **options}
    if name not in DATASETS:
        return canonical_text(name, options)
    try:
        check_options(name, classes=classes, samples_per_class=samples)
    except SpaceError as error:
        raise ValueError(str(error)) from error
    if classes is not None and list(classes) == list(range(info(name).num_classes)):
        del options["classes"]  # all of them, in their own order
    return canonical_text(name, options)


def canonical_technique(value: Value) -> str:
    """Return the canonical text of a technique; its options are those of its criterion."""
    name, options = read_method(value, "technique")
    techniques.resolve(name, options)
    return canonical_text(name, options)


def canonical_method(value: Value, registry: Registry) -> str:
    """Return the canonical text of a registered method, every option in it but those of later defaults."""
    name, options = read_method(value, registry.kind)
    method = registry.get({**options, "method": name})
    return canonical_text(method.name, method.text_options(method.options))


def canonical_lr_schedule(value: Value) -> str:
    """Return the canonical text of a learning-rate schedule; `step` with its defaults is `step`.

    That had no options once, and keys are made of the text.
    """
    name, options = read_method(value, lr_schedules.kind)
    method = lr_schedules.get({**options, "method": name})
    plain = lr_schedules.get("step")
    is_plain = (method.name, method.options) == (plain.name, plain.options)
    return method.name if is_plain else canonical_text(method.name, method.options)


def canonical_augmentation(value: Value) -> str:
    """Return the canonical text of an augmentation, or of several that follow each other: `a + b(c=1)`."""
    if isinstance(value, Mapping):
        return canonical_method(value, augmentations)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        read_method(value, augmentations.kind)  # ValueError with the forms
    methods = parse_augmentation(str(value))
    return f" {SEPARATOR} ".join(canonical_text(method.name, method.options) for method in methods)


def _as_lists(value: Value) -> Value:
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_range(value: Value) -> bool:
    """Whether a mapping is meant as a range; one with `method` is a method."""
    return isinstance(value, Mapping) and any(key in value for key in ("low", "high"))


def parse_range(value: Mapping[str, Value], check: CheckList) -> Range:
    """Return the range of a mapping; `check` types its numbers as it does the values of a list."""
    for key in value:
        if key not in RANGE_KEYS:
            raise ValueError(unknown_name("key of a range", key, RANGE_KEYS))
    if not {"low", "high"} <= value.keys():
        raise ValueError(f"a range needs low and high: {RANGE_EXAMPLE}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log is {log!r:.80}; give true or false")
    low, high = (_parse_number(key, value[key], check) for key in ("low", "high"))
    step = None if value.get("step") is None else _parse_number("step", value["step"], check)
    _check_range(low, high, step, log=log)
    return Range(low, high, log, step)


def _parse_number(key: str, value: Value, check: CheckList) -> Number:
    try:
        numbers = check([value])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{key} is {value!r:.80}; {first['msg'].removeprefix('Value error, ')}") from error
    if len(numbers) != 1 or isinstance(numbers[0], bool) or not isinstance(numbers[0], (int, float)):
        raise ValueError(f"{key} is {value!r:.80}; give one number")
    return numbers[0]


def _check_range(low: Number, high: Number, step: Number | None, *, log: bool) -> None:
    if isinstance(low, int) != isinstance(high, int):
        raise ValueError(f"low is {low!r} and high is {high!r}; give two whole numbers, or two with a point")
    if low >= high:
        raise ValueError(
            f"low is {low!r} and high is {high!r}; low must be below high (one value stands alone)"
        )
    if log and low <= 0:
        raise ValueError(f"low is {low!r}; on a log scale it must be above 0")
    if log and step is not None:
        raise ValueError("step and log do not go together; leave one out")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step is {step!r}; it must be above 0 and at most {high - low:g}")
    if step is not None and isinstance(step, int) != isinstance(low, int):
        raise ValueError(f"step is {step!r}; whole numbers take whole steps, others take steps with a point")


def range_schema(number: JsonSchemaValue) -> JsonSchemaValue:
    """Return the JSON Schema of a range whose numbers have the schema `number`."""
    return {
        "type": "object",
        "properties": {"low": number, "high": number, "log": {"type": "boolean"}, "step": number},
        "required": ["low", "high"],
        "additionalProperties": False,
    }


def _parse_choice(value: Value, check: Callable[[Value], tuple[Any, ...]]) -> Choice:
    if is_range(value):
        return parse_range(value, lambda items: check(as_list(items)))
    return check(as_list(value))


# For pydantic: a list of T, a single T, or a range of T. The first argument of the union, the tuple, is what
# pydantic validates: with the whole union its errors would name the branches and not the value.
Ranged = Annotated[
    tuple[T, ...] | Range,
    GetPydanticSchema(
        lambda source, handler: core_schema.no_info_wrap_validator_function(
            _parse_choice, handler.generate_schema(Annotated[get_args(source)[0], Field(min_length=1)])
        ),
        lambda schema, handler: (
            lambda array: {"anyOf": [array["items"], array, range_schema(array["items"])]}
        )(handler(schema)),
    ),
]
