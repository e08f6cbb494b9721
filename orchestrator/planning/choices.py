"""Take points out of the axes of a space: all of a grid, or one of each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.space import hyperparameters
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Value, listed_values
from pruning.registry import parse

Lists = Mapping[str, tuple[Any, ...]]  # an axis's name and its values
Chooser = Callable[[str, Choice], Value]  # one of the values of an axis or of a METHOD.OPTION


def iter_grid(space: Space) -> Lists:
    """Every axis's values; methods with every combination of the listed values of their options."""
    options = space.axes.options
    return {
        axis: hyperparameters.expand_texts(axis, chosen, options)
        if axis in hyperparameters.METHOD_REGISTRIES
        else chosen
        for axis, choice in space.choices().items()
        for chosen in (listed_values(choice),)
    }


def select(space: Space, pick: Chooser) -> Lists:
    """One value for every axis but the seed: what `pick` says where there is a choice.

    It is asked axis by axis, and for an option right after its method, only where that was picked.
    """
    found: dict[str, tuple[Value, ...]] = {}
    for axis, choice in space.choices().items():
        if axis == "seed":
            found[axis] = listed_values(choice)
            continue
        value = _picked(axis, choice, pick)
        if axis in hyperparameters.METHOD_REGISTRIES:
            name = parse(value)[0]
            own = hyperparameters.hyperparameters_of(axis, value, space.axes.options)
            picked = {option: _picked(f"{name}.{option}", one, pick) for option, one in own.items()}
            value = hyperparameters.with_options(value, picked) if picked else value
        found[axis] = (value,)
    return found


def _picked(name: str, choice: Choice, pick: Chooser) -> Value:
    return choice[0] if isinstance(choice, tuple) and len(choice) == 1 else pick(name, choice)
