"""One value of an axis as a person writes it -> its one form: full text, fraction, list.

Equal values get equal forms, whatever way they were written: keys are made of them. ValueError for
a value that is not allowed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import models
from orchestrator.config import method_text
from orchestrator.data.datasets import DATASETS, check_options
from orchestrator.errors import SpaceError, unknown_name
from orchestrator.space import techniques
from pruning.registry import Registry, parse

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
    raise ValueError(f"{text:.40} is no amount in [0, 1], or 0% to 100%{hint}")


def spec(value: Value, kind: str) -> tuple[str, dict[str, Value]]:
    """(name, options) of a method given as `name`, `name(a=1)` or `{method: name, a: 1}`."""
    if isinstance(value, Mapping) and isinstance(value.get("method"), str):
        name, options = parse(value["method"][:MAX_TEXT])
        return name, options | {key: option for key, option in value.items() if key != "method"}
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return parse(value)
    form = "name, name(option=value) or {method: name, option: value}"
    raise ValueError(f"{value!r:.80} is no {kind}; write {form}")


def full_text(name: str, options: Mapping[str, Value]) -> str:
    """The full text form; lists and tuples, which mean the same, look the same."""
    text = method_text(name, {key: _listed(option) for key, option in options.items()})
    parse(text)  # ValueError for what has no text form: an infinite number
    return text


def model(value: Value) -> str:
    name, options = spec(value, "model")
    if name not in models.BUILDERS:
        raise ValueError(unknown_name("model", name, models.BUILDERS))
    return full_text(*models.resolve(name, **options))


def dataset(value: Value) -> str:
    """Options that are None, which stand for all of the images, are left out."""
    name, options = spec(value, "dataset")
    if name not in DATASETS:
        raise ValueError(unknown_name("dataset", name, DATASETS))
    known = list(inspect.signature(check_options).parameters)[1:]
    for option in options.keys() - set(known):
        raise ValueError(unknown_name(f"option of {name}", option, known))
    given = {key: options[key] for key in known if options.get(key) is not None}
    classes, samples = given.get("classes"), given.get("samples_per_class")
    if classes is not None and not _is_whole_numbers(classes):
        raise ValueError(f"{name}: classes={classes!r:.80}; give a list of integers such as [0, 1]")
    if samples is not None and type(samples) is not int:
        raise ValueError(f"{name}: samples_per_class={samples!r:.80}; give an integer")
    try:
        check_options(name, classes=classes, samples_per_class=samples)
    except SpaceError as error:
        raise ValueError(str(error)) from error
    return full_text(name, given)


def _is_whole_numbers(value: Value) -> bool:
    return isinstance(value, (list, tuple)) and all(type(item) is int for item in value)


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
