"""Hyper-parameters of methods: their types and ranges, and values brought into them.

The keyword-only parameters of a function that have a default are its hyper-parameters;
`Annotated[float, Between(0, 1)]` gives their range, `Annotated[..., Converter(...)]` a conversion of their
values.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from numbers import Real
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pruning.user_code.functions import as_declared

Value = Any  # a literal of a space file: number, text, bool, None, or a list of these
Function = Callable[..., Any]  # what a method returns differs by kind


@dataclass(frozen=True)
class Between:
    """A range of numbers with both ends included, save for those that are `open_low` or `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def contains(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


@dataclass(frozen=True)
class Converter:
    """Brings every spelling of a value into one; `convert` raises ValueError that says what is `allowed`."""

    convert: Callable[[Any], Any]  # from a literal of a space file
    allowed: str


@dataclass(frozen=True)
class Hyperparameter:
    """`kind` is the type where it is a plain one; `hint` is the whole annotation, plain or not."""

    default: Value
    kind: type | None
    between: Between | None
    hint: Any = None  # a type, or one of typing's forms
    converter: Converter | None = None

    @property
    def allowed(self) -> str:
        """The allowed values in one phrase: `float in [0, 1]`, `list[int]`."""
        if self.converter is not None:
            return self.converter.allowed
        is_class = isinstance(self.hint, type) and not get_args(self.hint)
        text = self.hint.__name__ if is_class else str(self.hint)
        text = text.replace("collections.abc.", "").replace("Sequence[", "list[")
        bounded = self.between is not None and math.isfinite(min(self.between.high, -self.between.low))
        return f"{text} in {self.between}" if bounded else text


@cache  # a plan asks for it once per trial, and may have many thousand
def hyperparameters(function: Function) -> Mapping[str, Hyperparameter]:
    """Return the keyword-only parameters with a default: their default, type and range.

    Types are missing where the annotations name something that the function's module does not import.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        hints = {}
    result = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            hint = hints.get(name)
            extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            bare = get_args(hint)[0] if extras else hint
            between = next((extra for extra in extras if isinstance(extra, Between)), None)
            converter = next((extra for extra in extras if isinstance(extra, Converter)), None)
            kind = bare if bare in (int, float, bool, str) else None
            result[name] = Hyperparameter(parameter.default, kind, between, bare, converter)
    return MappingProxyType(result)


def convert_option(label: str, value: Value, option: Hyperparameter) -> Value:
    """Return the value of an option in the option's type. ValueError for another type, or outside the range.

    Numbers may be numpy's or torch's (see `to_python`).
    """
    if value is None and option.default is None:
        return None
    value = to_python(value)
    if option.converter is not None:
        try:
            value = option.converter.convert(value)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
    if option.kind is None:
        value = as_declared(value, option.hint, option.default)
    if option.kind in (float, int):
        number = to_float(value) if option.kind is float else to_int(value)
        value = value if number is None else number
    # type() and not isinstance(): True is an int to Python, and no number of rounds.
    if option.kind is not None and type(value) is not option.kind:
        raise ValueError(f"{label} is {value!r}; a value of type {option.kind.__name__} is needed")
    if option.between is not None and not option.between.contains(value):
        raise ValueError(f"{label} is {value!r}; it must be in {option.between}")
    return value


def to_python(value: object) -> object:
    """Return a scalar of numpy or torch as Python's, and anything else as it is.

    `np.float32(0.1)` is the float that it stores, 0.10000000149011612, not the decimal that was written.
    """
    item = getattr(value, "item", None)
    return item() if getattr(value, "ndim", None) == 0 and callable(item) else value


def to_float(value: object) -> float | None:
    """Return `float(value)`; None for a bool, for no real number, and beyond a float's range."""
    value = to_python(value)
    with suppress(OverflowError):
        return None if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    return None


def to_int(value: object) -> int | None:
    """Return the int that a value stands for; None for a bool, and for what is no int, such as 3.0."""
    value = to_python(value)
    with suppress(TypeError):
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    return None
