"""Out of the choices of a space: all of them, for a grid, or one of each, for a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.language import option_axes
from orchestrator.language.ranges import Choice
from orchestrator.language.values import Value
from orchestrator.space import Space
from pruning.registry import parse

Lists = Mapping[str, tuple[Any, ...]]  # an axis's name and its values
Pick = Callable[[str, Choice], Value]  # one of the values of an axis or of a METHOD.OPTION


def grid(space: Space) -> Lists:
    """Every axis's values; methods with every combination of the listed values of their options."""
    options = space.axes.options
    return {
        axis: option_axes.spread(axis, chosen, options) if axis in option_axes.TUNED else chosen
        for axis, choice in space.choices().items()
        for chosen in (option_axes.listed(choice),)
    }


def at(space: Space, pick: Pick) -> Lists:
    """One value for every axis but the seed: what `pick` says where there is a choice.

    It is asked axis by axis, and for an option right after its method, only where that was picked.
    """
    found: dict[str, tuple[Value, ...]] = {}
    for axis, choice in space.choices().items():
        if axis == "seed":
            found[axis] = option_axes.listed(choice)
            continue
        value = _picked(axis, choice, pick)
        if axis in option_axes.TUNED:
            name = parse(value)[0]
            own = option_axes.own(axis, value, space.axes.options)
            picked = {option: _picked(f"{name}.{option}", one, pick) for option, one in own.items()}
            value = option_axes.with_options(value, picked) if picked else value
        found[axis] = (value,)
    return found


def _picked(name: str, choice: Choice, pick: Pick) -> Value:
    return choice[0] if isinstance(choice, tuple) and len(choice) == 1 else pick(name, choice)
