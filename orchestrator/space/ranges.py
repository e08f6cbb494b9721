"""A stretch of numbers in place of a list: `{low: 1e-4, high: 1e-1, log: true}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from orchestrator.errors import unknown_name
from orchestrator.space import values
from orchestrator.space.values import Value

T = TypeVar("T")
Number = int | float
Check = Callable[[list[Value]], Sequence[Any]]  # a list as a file has it -> its values, typed
KEYS = ("low", "high", "log", "step")
FORM = "{low: 0.5, high: 0.9}, with log: true or a step if wanted"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where `low` is an integer.

    `log`: a number between 1 and 10 is as likely as one between 10 and 100. `step`: only low, low + step, ...
    """

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def last(self) -> Number:
        """The largest number that is in it: `high`, or what the steps reach below it."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return self.nearest(high - (high - low) % step)

    def nearest(self, number: Number | Decimal) -> Number:
        """The number on the steps next to one, as a person would write it: 0.8, never 0.7999999999999999."""
        if self.step is None:
            return float(number) if not self.whole else int(number)
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        found = low + round((Decimal(str(number)) - low) / step) * step
        return int(found) if self.whole else float(found)

    def holds(self, value: Value) -> bool:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        extra = ", log" if self.log else "" if self.step is None else f" by {self.step:g}"
        return f"{self.low:g} to {self.high:g}{extra}"


Choice = tuple[Value, ...] | Range  # of an axis: a list, or a range


def is_range(value: Value) -> bool:
    """Whether a mapping is meant to be a range; one with `method` is a method."""
    return isinstance(value, Mapping) and any(key in value for key in ("low", "high"))


def read(value: Mapping[str, Value], check: Check) -> Range:
    """The range of a mapping; `check` types its numbers as it does a list's. ValueError for no range."""
    for key in value:
        if key not in KEYS:
            raise ValueError(unknown_name("key of a range", key, KEYS))
    if not {"low", "high"} <= value.keys():
        raise ValueError(f"a range needs low and high: {FORM}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log is {log!r:.80}; give true or false")
    low, high = (_number(key, value[key], check) for key in ("low", "high"))
    step = None if value.get("step") is None else _number("step", value["step"], check)
    found = Range(low, high, log, step)
    _check_order(found)
    return found


def _number(key: str, given: Value, check: Check) -> Number:
    try:
        found = check([given])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{key} is {given!r:.80}; {first['msg'].removeprefix('Value error, ')}") from error
    if len(found) != 1 or isinstance(found[0], bool) or not isinstance(found[0], (int, float)):
        raise ValueError(f"{key} is {given!r:.80}; give one number")
    return found[0]


def _check_order(found: Range) -> None:
    low, high, step = found.low, found.high, found.step
    if isinstance(low, int) != isinstance(high, int):
        raise ValueError(f"low is {low!r} and high is {high!r}; give two whole numbers, or two with a point")
    if low >= high:
        raise ValueError(
            f"low is {low!r} and high is {high!r}; low must be below high (one value stands alone)"
        )
    if found.log and low <= 0:
        raise ValueError(f"low is {low!r}; on a log scale it must be above 0")
    if found.log and step is not None:
        raise ValueError("step and log do not go together; leave one out")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step is {step!r}; it must be above 0 and at most {high - low:g}")
    if step is not None and isinstance(step, int) != found.whole:
        raise ValueError(f"step is {step!r}; whole numbers take whole steps, others take steps with a point")


class _ListOrRange:
    """Pydantic's view of `Ranged[T]`: a list of T, one T, or a range of T."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        listed = handler.generate_schema(Annotated[get_args(source)[0], Field(min_length=1)])
        return core_schema.no_info_wrap_validator_function(self._read, listed)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array, range_schema(array["items"])]}

    @staticmethod
    def _read(value: Value, check: Callable[[Value], tuple[Any, ...]]) -> Choice:
        if is_range(value):
            return read(value, lambda listed: check(values.as_list(listed)))
        return check(values.as_list(value))


def range_schema(number: JsonSchemaValue) -> JsonSchemaValue:
    """The JSON Schema of a range whose numbers have the schema `number`."""
    return {
        "type": "object",
        "properties": {"low": number, "high": number, "log": {"type": "boolean"}, "step": number},
        "required": ["low", "high"],
        "additionalProperties": False,
    }


Ranged = Annotated[tuple[T, ...] | Range, _ListOrRange()]
