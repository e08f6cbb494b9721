"""Apply --set to a space: `key=v1,v2` replaces the axes and fields of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import SpaceError, unknown_name
from orchestrator.space import hyperparameters, recipe, values, yaml_loader
from orchestrator.space.schema import AXIS_NAMES, Search
from orchestrator.space.values import INTEGER_RANGE
from orchestrator.space.yaml_loader import Path, Plain

TECHNIQUE_AXES = ("criterion", "granularity", "scope")
SEARCH_KEYS = tuple(f"search.{field}" for field in Search.model_fields)
LAYER_KEYS = ("protect", "only")
WIDTH_KEY = "round_to"
RECIPE_KEY = f"train.{recipe.FIELD}"
SETTABLE = (*AXIS_NAMES, *LAYER_KEYS, WIDTH_KEY, *SEARCH_KEYS, RECIPE_KEY)


def with_sets(data: dict[str, Plain], sets: Sequence[str]) -> tuple[dict[str, Plain], dict[Path, str]]:
    """Return the data with every `key=v1,v2` applied, and for each path that was set its --set."""
    origins: dict[Path, str] = {}
    for item in sets:
        option = f"--set {item[:80]}"
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not (key in SETTABLE or hyperparameters.axes_accepting(key)):
            known = (*SETTABLE, *hyperparameters.names())
            hint = unknown_name("key", key, known) if equals else "write key=value or key=v1,v2"
            raise SpaceError(f"{option}: {hint}")
        new_values = [yaml_loader.load_yaml(value, option).data for value in _split(text)]
        if not new_values and key not in LAYER_KEYS:
            raise SpaceError(f"{option}: no value is given; write {key}=v1,v2")
        if key in (*SEARCH_KEYS, RECIPE_KEY, WIDTH_KEY) and len(new_values) > 1:
            raise SpaceError(f"{option}: {key} takes one value")
        path, data = _replace(data, key, new_values, set(origins))
        origins[path] = option
    return data, origins


def _replace(
    data: dict[str, Plain], key: str, new_values: list[Plain], set_paths: set[Path]
) -> tuple[Path, dict[str, Plain]]:
    """Return the path of the new values, and the data with them.

    Axes that they make pointless are removed, save for `set_paths`, which an earlier --set gave.
    """
    group, _, field = key.rpartition(".")
    if key in LAYER_KEYS:
        return (key,), {**data, key: new_values}
    if key == WIDTH_KEY:
        return (key,), {**data, key: new_values[0]}
    group_data = recipe.as_mapping(data.get(group, {})) if group in ("search", "train") else {}
    if key == RECIPE_KEY:
        # In place of the file's recipe; of that stays what an earlier --set gave.
        fields = group_data.items() if isinstance(group_data, dict) else ()
        stays = {name: value for name, value in fields if ("train", name) in set_paths}
        return ("train", field), {**data, group: {**stays, field: new_values[0]}}
    if group == "search" and isinstance(group_data, dict):
        return (group, field), {**data, group: {**group_data, field: new_values[0]}}
    old_axes = data.get("axes", {})
    if not isinstance(old_axes, dict):  # a mistake of the file, which validation reports with its line
        return ("axes", key), data
    pointless = {
        key,
        *(n for n in _pointless_axes(key, old_axes, new_values) if ("axes", n) not in set_paths),
    }
    axes = {name: value for name, value in old_axes.items() if name not in pointless}
    data = {**data, "axes": axes}
    if key == "recover":
        data.pop("recover", None)
    is_single = len(new_values) == 1 and not INTEGER_RANGE.fullmatch(str(new_values[0]))
    is_mapping = len(new_values) == 1 and isinstance(new_values[0], Mapping)
    if group == "train" and is_single and not is_mapping and isinstance(group_data, dict):
        return ("train", field), {**data, "train": {**group_data, field: new_values[0]}}
    # A mapping alone is a range, or a method.
    axes[key] = new_values[0] if is_mapping else new_values
    return ("axes", key), data


def _pointless_axes(key: str, axes: Mapping[str, Plain], new_values: list[Plain]) -> Sequence[str]:
    """Return the axes that `key` replaces: the other way to name a technique, options of methods not set."""
    if key == "technique":
        return TECHNIQUE_AXES
    rivals = ["technique"] if key in TECHNIQUE_AXES else []
    # Both say how layers compete.
    rivals += {"scope": ["allocate"], "allocate": ["scope"]}.get(key, [])
    if key not in hyperparameters.METHOD_REGISTRIES:
        return rivals
    methods = {_method_name(value) for value in new_values}
    return rivals + [
        name
        for name in axes
        if key in hyperparameters.axes_accepting(name) and name.rpartition(".")[0] not in methods
    ]


def _method_name(value: Plain) -> str:
    """Return the name of a method in any form; "" for what is none, which validation reports later."""
    try:
        return values.read_method(value, "method")[0]
    except ValueError:
        return ""


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes, without blank items."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0 and not quote:
            items.append("")
        else:
            items[-1] += character
    return [item.strip() for item in items if item.strip()]
