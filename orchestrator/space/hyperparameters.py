"""Hyper-parameters of methods as axes: `pq_index.gamma: [1, 3]` applies where `pq_index` is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from orchestrator.config import method_name
from orchestrator.space import values
from orchestrator.space.values import Choice, Value, is_range, listed_values, parse_range, range_schema
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.hyperparameters import Hyperparameter, convert_option, hyperparameters
from pruning.registry import Registry, parse_method
from pruning.schedules import schedules
from pruning.user_code import own_code

FIELD = "METHOD.OPTION"  # the field of `Axes` that holds them
# Axis -> the methods that it takes.
METHOD_REGISTRIES = {
    "criterion": criteria,
    "granularity": granularities,
    "schedule": schedules,
    "recover": recoveries,
    "prepare": preparations,
    "distill": distillations,
}


def names() -> list[str]:
    """Return every METHOD.OPTION, sorted."""
    return sorted(
        {
            f"{method}.{option}"
            for registry in METHOD_REGISTRIES.values()
            for method in registry
            for option in _options_of(registry.kind, method)
        }
    )


@lru_cache(maxsize=1024)
def _options_of(kind: str, method: str) -> Mapping[str, Hyperparameter]:
    registry = next(registry for registry in METHOD_REGISTRIES.values() if registry.kind == kind)
    return hyperparameters(registry.get(method).function)


def axes_accepting(key: str) -> list[str]:
    """Return the axes that take METHOD, and with it OPTION, of `METHOD.OPTION`."""
    method, option = split_key(key)
    return [
        axis
        for axis, registry in METHOD_REGISTRIES.items()
        if _has(registry, method) and option in _options_of(registry.kind, method)
    ]


def split_key(key: str) -> tuple[str, str]:
    """Return the method, its name pinned where it is of one's own file, and the option of `METHOD.OPTION`."""
    method, _, option = key.rpartition(".")
    if not own_code.is_own(method):
        return method, option
    try:
        return own_code.pinned(method), option
    except ValueError:  # the axis that names the method says what is wrong
        return method, option


def _has(registry: Registry, method: str) -> bool:
    if not own_code.is_own(method):
        return method in registry
    try:
        registry.get(method)
    except ValueError:  # a method of another kind
        return False
    return True


def split_hyperparameters(data: Value) -> Value:
    """Move every METHOD.OPTION of plain axes into a mapping under FIELD, as (name, value)."""
    if not isinstance(data, Mapping):
        return data
    if FIELD in data:
        raise ValueError(f"{FIELD} stands for a method and one of its options; write it as {names()[0]}")
    # A validator of a mapping's values is not told their keys, so each value carries its own.
    keys = {key: ".".join(split_key(key)) for key in data if isinstance(key, str) and axes_accepting(key)}
    options = {pinned: (pinned, data[key]) for key, pinned in keys.items()}
    axes = {key: value for key, value in data.items() if key not in keys}
    return {**axes, FIELD: options} if options else axes


def _parse_option(named: tuple[str, Value]) -> Choice:
    key, value = named
    method, option = split_key(key)
    hyperparameter = _options_of(METHOD_REGISTRIES[axes_accepting(key)[0]].kind, method)[option]
    check = partial(_typed, option, hyperparameter)
    if is_range(value):
        return parse_range(value, check)
    options = check(values.as_list(value))
    if not options:
        raise ValueError("no value is given; give a list of one or more")
    return options


def _typed(option: str, hyperparameter: Hyperparameter, items: Sequence[Value]) -> tuple[Value, ...]:
    for value in items:
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(
                f"{value!r:.80} is no number, text or boolean; lists go into the method's own text"
            )
    return tuple(convert_option(option, value, hyperparameter) for value in items)


def hyperparameters_of(axis: str, text: str, options: Mapping[str, Choice]) -> dict[str, Choice]:
    """Return those of `options` (by METHOD.OPTION) that the method `text` has, by OPTION."""
    name = parse_method(text)[0]
    return {
        split_key(key)[1]: choice
        for key, choice in options.items()
        if split_key(key)[0] == name and axis in axes_accepting(key)
    }


def with_options(axis: str, text: str, changed: Mapping[str, Value]) -> str:
    """Return the text of a method of an axis with other values for some of its options."""
    name, options = parse_method(text)
    method = METHOD_REGISTRIES[axis].get(name)
    return values.canonical_text(name, method.text_options({**options, **changed}))


def count_texts(axis: str, texts: Sequence[str], options: Mapping[str, Choice]) -> int:
    """Return the length of `expand_texts`, without making them."""
    sizes = (
        [len(listed_values(choice)) for choice in hyperparameters_of(axis, text, options).values()]
        for text in texts
    )
    return sum(prod(size for size in lengths if size) for lengths in sizes)


def expand_texts(axis: str, texts: Sequence[str], options: Mapping[str, Choice]) -> tuple[str, ...]:
    """Return every method with every combination of the listed values of its options."""
    expanded = []
    for text in texts:
        choices = hyperparameters_of(axis, text, options)
        for combination in product(*map(listed_values, choices.values())):
            changed = dict(zip(choices, combination, strict=True))
            expanded.append(with_options(axis, text, changed) if changed else text)
    return tuple(expanded)


def unused_reason(key: str, choices: Mapping[str, Choice]) -> str | None:
    """Return why no method of the space takes the option `key`; None where one does."""
    axes, method = axes_accepting(key), method_name(split_key(key)[0])
    methods = sorted({method_name(text) for axis in axes for text in listed_values(choices.get(axis, ()))})
    if method in methods:
        return None
    has = f"which has {', '.join(methods)}" if methods else "which has none"
    return f"{method} is no {axes[0]} of this space, {has}; add it there, or leave {own_code.shown(key)} out"


@lru_cache(maxsize=4096)
def option_conflict(axis: str, text: str) -> str | None:
    """Return why the registry takes no such combination of options; None where it does."""
    try:
        METHOD_REGISTRIES[axis].get(text)
    except ValueError as error:
        return f"{axis} {method_name(text)}: {error}"
    return None


_SCALAR = {"type": ["number", "string", "boolean"]}
_SCHEMA = {
    "anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}, range_schema({"type": "number"})]
}
HyperparameterAxes = dict[str, Annotated[Any, PlainValidator(_parse_option), WithJsonSchema(_SCHEMA)]]
