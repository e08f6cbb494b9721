"""Lists of values from the axes of a space: all of a grid, or one of each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.space.hyperparameters import (
    METHOD_REGISTRIES,
    expand_texts,
    hyperparameters_of,
    with_options,
)
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Value, listed_values
from pruning.registry import parse_method

Lists = Mapping[str, tuple[Any, ...]]  # an axis's name and its values
Chooser = Callable[[str, Choice], Value]  # (axis or METHOD.OPTION, its choice) -> a single value of it


def grid_lists(space: Space) -> Lists:
    """Return every axis's values; methods with every combination of the listed values of their options."""
    lists = {axis: listed_values(choice) for axis, choice in space.choices().items()}
    return {
        axis: expand_texts(axis, texts, space.axes.options) if axis in METHOD_REGISTRIES else texts
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
        if axis in METHOD_REGISTRIES:
            name = parse_method(value)[0]
            choices = hyperparameters_of(axis, value, space.axes.options)
            options = {o: _select_value(f"{name}.{o}", choices[o], choose) for o in choices}
            value = with_options(value, options) if options else value
        lists[axis] = (value,)
    return lists


def _select_value(name: str, choice: Choice, choose: Chooser) -> Value:
    return choice[0] if isinstance(choice, tuple) and len(choice) == 1 else choose(name, choice)
