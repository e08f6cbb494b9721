"""What --set changes in a space: `key=v1,v2` in place of the file's own axes and fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import SpaceError, unknown_name
from orchestrator.space import hyperparameters, values, yaml_loader
from orchestrator.space.schema import AXIS_NAMES, Search
from orchestrator.space.values import RANGE
from orchestrator.space.yaml_loader import Path, Plain

TECHNIQUE_AXES = ("criterion", "granularity", "scope")
SEARCH_KEYS = tuple(f"search.{field}" for field in Search.model_fields)
SETTABLE = (*AXIS_NAMES, "protect", *SEARCH_KEYS)


def with_sets(data: dict[str, Plain], sets: Sequence[str]) -> tuple[dict[str, Plain], dict[Path, str]]:
    """The data with what is set in its place, and for each path that was set the --set behind it."""
    origins: dict[Path, str] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not (key in SETTABLE or hyperparameters.axes_accepting(key)):
            known = (*SETTABLE, *hyperparameters.names())
            hint = unknown_name("key", key, known) if equals else "write key=value or key=v1,v2"
            raise SpaceError(f"--set {item[:80]}: {hint}")
        chosen = [yaml_loader.read(part, f"--set {item[:80]}").data for part in _split(text)]
        if not chosen and key != "protect":
            raise SpaceError(f"--set {item[:80]}: no value is given; write {key}=v1,v2")
        if key in SEARCH_KEYS and len(chosen) > 1:
            raise SpaceError(f"--set {item[:80]}: {key} takes one value")
        path, data = _replaced(data, key, chosen, set(origins))
        origins[path] = f"--set {item[:80]}"
    return data, origins


def _replaced(
    data: dict[str, Plain], key: str, chosen: list[Plain], kept: set[Path]
) -> tuple[Path, dict[str, Plain]]:
    """(where the values stand now, the new data); what they take the place of is gone, save for `kept`."""
    group, _, field = key.rpartition(".")
    if key == "protect":
        return (key,), {**data, key: chosen}
    below = data.get(group, {}) if group in ("search", "train") else {}
    if group == "search" and isinstance(below, dict):
        return (group, field), {**data, group: {**below, field: chosen[0]}}
    given = data.get("axes", {})
    if not isinstance(given, dict):  # a mistake of the file, which is told with its line
        return ("axes", key), data
    gone = {key, *(name for name in _outdone(key, given, chosen) if ("axes", name) not in kept)}
    axes = {name: found for name, found in given.items() if name not in gone}
    data = {**data, "axes": axes}
    if key == "recover":
        data.pop("recover", None)
    alone = len(chosen) == 1 and not RANGE.fullmatch(str(chosen[0])) and not isinstance(chosen[0], Mapping)
    if group == "train" and alone and isinstance(below, dict):
        return ("train", field), {**data, "train": {**below, field: chosen[0]}}
    # A mapping alone is a range, or a method.
    axes[key] = chosen[0] if len(chosen) == 1 and isinstance(chosen[0], Mapping) else chosen
    return ("axes", key), data


def _outdone(key: str, given: Mapping[str, Plain], chosen: list[Plain]) -> Sequence[str]:
    """The axes that a new one makes pointless: the other way to name a technique, options of methods gone."""
    if key == "technique":
        return TECHNIQUE_AXES
    rivals = ["technique"] if key in TECHNIQUE_AXES else []
    if key not in hyperparameters.METHOD_REGISTRIES:
        return rivals
    now = {_method(value) for value in chosen}
    return rivals + [
        name
        for name in given
        if key in hyperparameters.axes_accepting(name) and name.partition(".")[0] not in now
    ]


def _method(value: Plain) -> str:
    """The name of a method in whatever form; what is none is refused later, with its place."""
    try:
        return values.spec(value, "method")[0]
    except ValueError:
        return ""


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes; parts that are blank are left out."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]
