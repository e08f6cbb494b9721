"""Options of methods as axes: `pq_index.gamma: [1, 3]`, asked for only where that method is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from orchestrator.config import method_name
from orchestrator.space import values
from orchestrator.space.ranges import Choice, is_range, range_schema, read
from orchestrator.space.values import Value
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Hyperparameter, hyperparameters, parse, typed
from pruning.schedules import schedules

FIELD = "METHOD.OPTION"  # where they stand once they are apart from the axes
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
    """Every METHOD.OPTION that there is."""
    return sorted(
        {
            f"{m}.{option}"
            for registry in METHOD_REGISTRIES.values()
            for m in registry
            for option in _known(registry.kind, m)
        }
    )


@lru_cache(maxsize=1024)
def _known(kind: str, method: str) -> Mapping[str, Hyperparameter]:
    registry = next(registry for registry in METHOD_REGISTRIES.values() if registry.kind == kind)
    return hyperparameters(registry.get(method).function)


def axes_accepting(key: str) -> list[str]:
    """The axes that take METHOD, and with it OPTION, of `METHOD.OPTION`."""
    method, _, option = key.partition(".")
    return [
        axis
        for axis, registry in METHOD_REGISTRIES.items()
        if method in registry and option in _known(registry.kind, method)
    ]


def split_hyperparameters(data: Value) -> Value:
    """Plain axes with the options of methods in a mapping of their own; each value knows its name."""
    if not isinstance(data, Mapping):
        return data
    if FIELD in data:
        raise ValueError(f"{FIELD} stands for a method and one of its options; write it as {names()[0]}")
    own = {key: (key, value) for key, value in data.items() if isinstance(key, str) and axes_accepting(key)}
    others = {key: value for key, value in data.items() if key not in own}
    return {**others, FIELD: own} if own else others


def _choice(named: tuple[str, Value]) -> Choice:
    """The typed values of one option."""
    key, given = named
    axis, option = axes_accepting(key)[0], key.partition(".")[2]
    hyper = _known(METHOD_REGISTRIES[axis].kind, method_name(key.partition(".")[0]))[option]
    check = partial(_typed, key, hyper)
    if is_range(given):
        return read(given, check)
    found = check(values.as_list(given))
    if not found:
        raise ValueError("no value is given; give a list of one or more")
    return found


def _typed(key: str, hyper: Hyperparameter, given: Sequence[Value]) -> tuple[Value, ...]:
    for value in given:
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(
                f"{value!r:.80} is no number, text or boolean; lists go into the method's own text"
            )
    return tuple(typed(key.partition(".")[2], value, hyper) for value in given)


def hyperparameters_of(axis: str, text: str, options: Mapping[str, Choice]) -> dict[str, Choice]:
    """Those of `options` that the method `text` has, by the names of its options."""
    name = method_name(text)
    split = {
        key: key.partition(".")[2]
        for key in options
        if key.partition(".")[0] == name and axis in axes_accepting(key)
    }
    return {option: options[key] for key, option in split.items()}


def with_options(text: str, chosen: Mapping[str, Value]) -> str:
    """The text of a method with other values for some of its options."""
    name, options = parse(text)
    return values.full_text(name, {**options, **chosen})


def listed(chosen: Choice) -> tuple[Value, ...]:
    """The values of a list; none of a range."""
    return chosen if isinstance(chosen, tuple) else ()


def count(axis: str, texts: Sequence[str], options: Mapping[str, Choice]) -> int:
    """How many `spread` gives, without making them."""
    sizes = (
        [len(listed(chosen)) for chosen in hyperparameters_of(axis, text, options).values()] for text in texts
    )
    return sum(prod(size for size in found if size) for found in sizes)


def iter_texts(axis: str, texts: Sequence[str], options: Mapping[str, Choice]) -> tuple[str, ...]:
    """Every method with every combination of the listed values of its options."""
    found = []
    for text in texts:
        mine = hyperparameters_of(axis, text, options)
        for combination in product(*map(listed, mine.values())):
            found.append(with_options(text, dict(zip(mine, combination, strict=True))) if mine else text)
    return tuple(found)


def unused_reason(key: str, chosen: Mapping[str, Choice]) -> str | None:
    """Why nothing takes the option `key`, if nothing does; `chosen` are the methods of each axis."""
    axes, method = axes_accepting(key), key.partition(".")[0]
    there = sorted({method_name(text) for axis in axes for text in listed(chosen.get(axis, ()))})
    if method in there:
        return None
    has = f"which has {', '.join(there)}" if there else "which has none"
    return f"{method} is no {axes[0]} of this space, {has}; add it there, or leave {key} out"


@lru_cache(maxsize=4096)
def refusal(axis: str, text: str) -> str | None:
    """Why the registry takes no such combination of options."""
    try:
        METHOD_REGISTRIES[axis].get(text)
    except ValueError as error:
        return f"{axis} {method_name(text)}: {error}"
    return None


def _schema() -> dict[str, Any]:  # JSON
    plain = {"type": ["number", "string", "boolean"]}
    return {
        "anyOf": [plain, {"type": "array", "items": plain, "minItems": 1}, range_schema({"type": "number"})]
    }


Options = dict[str, Annotated[Any, PlainValidator(_choice), WithJsonSchema(_schema())]]
