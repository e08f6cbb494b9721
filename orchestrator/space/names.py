"""The names that a space file may use, from names.json: help and completion import no heavy library.

`python docs/write_methods.py` writes names.json from the registries; a test compares the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pruning.user_code.plugins import entry_points

SPACES = Path(__file__).parent / "included"
NAMES_FILE = Path(__file__).with_name("names.json")


@dataclass(frozen=True)
class Kind:
    """One kind of name. `noun` is the word for a single one; `axis` the key of a space file that takes it.

    `group` is the entry-point group by which other packages add to it; empty where none can.
    `summaries` has one line for each name of this package.
    """

    noun: str
    axis: str = ""
    group: str = ""
    summaries: dict[str, str] = field(default_factory=dict)


@cache
def _content() -> dict[str, Any]:  # JSON
    content: dict[str, Any] = json.loads(NAMES_FILE.read_text(encoding="utf-8"))
    return content


KINDS = {name: Kind(**fields) for name, fields in _content()["kinds"].items()}


def names(kind: str) -> dict[str, str]:
    """Return name -> summary for one of KINDS, other packages' names included.

    A summary is "" where only the code of another package has it.
    """
    if kind == "spaces":
        return {file.stem: _read_about(file) for file in sorted(SPACES.glob("*.yaml"), key=lambda f: f.stem)}
    summaries = {**KINDS[kind].summaries, **dict.fromkeys(plugin_names(kind), "")}
    # Registries list their names sorted; models and data sets list this package's first.
    return summaries if kind in ("models", "datasets", "techniques") else dict(sorted(summaries.items()))


def space_text(name: str) -> str | None:
    """Return the file of a named space; None where no space, or something else as well, has the name."""
    kinds = [kind for kind in KINDS if name in names(kind)]
    return (SPACES / f"{name}.yaml").read_text(encoding="utf-8") if kinds == ["spaces"] else None


def plugin_names(kind: str) -> list[str]:
    """Return the names that other packages add to a kind; what they do is in their code."""
    group = KINDS[kind].group
    return sorted(entry_points(group).keys() - KINDS[kind].summaries.keys()) if group else []


def settable_keys() -> list[str]:
    """Return the keys of --set: axes, fields of `train` and `search`, `protect`, `only`, `round_to`."""
    return list(_content()["settable_keys"])


def hyperparameter_axes() -> list[str]:
    """Return every METHOD.OPTION that may be an axis, and with it a key of --set."""
    return list(_content()["hyperparameter_axes"])


def library_names(library: str) -> list[str]:
    """Return the names of a library's models; empty for a library whose models are known to itself alone."""
    return list(_content()["library_names"].get(library, ()))


def axis_values(axis: str) -> dict[str, str]:
    """Return name -> summary for an axis that takes names; empty for one that takes numbers."""
    for name, kind in KINDS.items():
        if kind.axis == axis and axis != "stop":  # `stop` is a key of a space file, and no axis
            return names(name)
    return dict.fromkeys(_content()["words"].get(axis, ()), "")


def _read_about(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("about:")), "")
