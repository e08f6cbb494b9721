"""One's own functions as methods: their options, and a check of what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from typing import Any, get_args, get_type_hints

from pruning.user_code import own_code
from pruning.user_code.imports import reason
from pruning.user_code.sources import OwnCodeError

Function = Callable[..., Any]
LITERALS = (int, float, bool, str, type(None))
TRAITS = "__pruning_traits__"  # kind of method -> keywords of its decorator


def is_literal(value: object) -> bool:
    """Whether a default can be written in a space file."""
    if isinstance(value, (list, tuple)):
        return all(map(is_literal, value))
    return isinstance(value, LITERALS)


def as_declared(value: object, hint: object, default: object) -> object:
    """Return 2 as 2.0 where floats alone are declared, and 2.0 as 2 where ints alone are.

    One number has one text, and so one key. `hint` is a parameter's annotation, None without one: then its
    default declares the type.
    """
    declared = (type(default),) if hint is None else (hint, *get_args(hint))
    if type(value) is int and float in declared and int not in declared:
        with suppress(OverflowError):
            return float(value)
    if type(value) is float and value.is_integer() and int in declared and float not in declared:
        return int(value)
    return value


def hints_of(function: Function) -> Mapping[str, Any]:
    """Return the annotations of a function, or of a class's `__init__`; none where one has no value."""
    try:
        return get_type_hints(vars(function).get("__init__", function))
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}


def parameters_of(function: Function, name: str) -> list[inspect.Parameter]:
    """Return the parameters of a function, or of a class's `__init__`. OwnCodeError where it has none."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise OwnCodeError(f"{own_code.shown(name)}: Python does not know its parameters") from error


def options_of(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return keyword-only parameters for those that a space file can set: with a literal for a default."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in parameters
        if parameter.kind in kinds and is_literal(parameter.default)
    ]


def set_traits(function: Function, kind: str, traits: Mapping[str, Any]) -> None:
    """Note the keywords of a decorator on a function of one's own file."""
    vars(function).setdefault(TRAITS, {})[kind] = dict(traits)


@cache
def find_method(
    kind: str, pinned: str, positional: tuple[str, ...], keywords: tuple[str, ...]
) -> tuple[Function, Mapping[str, Any]]:
    """Return the function and the traits of a method of one's own file, by its pinned name.

    It is called with values for `positional` and `keywords`. OwnCodeError for a function that does not take
    these, or that is decorated as a method of another kind.
    """
    function = own_code.find_function(pinned)
    shown = own_code.shown(pinned)
    all_traits: Mapping[str, dict[str, Any]] = getattr(function, TRAITS, {})
    if all_traits and kind not in all_traits:
        raise OwnCodeError(f"{shown} is a {next(iter(all_traits))}, and no {kind}")
    parameters = parameters_of(function, pinned)
    try:
        inspect.signature(function).bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        form = ", ".join([*positional, *(["*", *keywords] if keywords else []), "..."])
        raise OwnCodeError(
            f"{shown} is no {kind}: {error}; write def {own_code.split(pinned).function}({form}), with "
            "a default for every option"
        ) from error
    return _called(function, shown, parameters, len(positional), keywords), all_traits.get(kind, {})


def _called(
    function: Function,
    shown: str,
    parameters: list[inspect.Parameter],
    positional: int,
    keywords: Sequence[str],
) -> Function:
    """Return the function with keyword-only options; what it raises becomes one line."""
    fixed = [p for p in parameters[:positional] if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    others = [p for p in parameters if p not in fixed and p.name not in keywords]
    needed = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name in keywords]

    @wraps(function)
    def call(*args: object, **options: object) -> Any:  # what a method returns differs by kind
        try:
            return function(*args, **options)
        except (ValueError, ArithmeticError, MemoryError):
            raise
        except (TypeError, LookupError, AttributeError, NameError, ImportError, AssertionError) as error:
            raise ValueError(f"{shown}: {reason(error)}") from error

    signature = inspect.Signature([*fixed, *needed, *options_of(others)])
    vars(call)["__signature__"] = signature
    return call
