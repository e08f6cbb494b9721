"""Write docs/methods.md and orchestrator/space/names.json: all that a space file may name.

The page is made of the registries and docs/formulas.yaml; names.json is what help and completion read.

python docs/write_methods.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from extensions import entries
from models import BUILDERS
from orchestrator.config import Control, Start, When
from orchestrator.data.datasets import DATASETS
from orchestrator.space import hyperparameters
from orchestrator.space.catalog import KINDS, REGISTRIES, Item, items
from orchestrator.space.overrides import SETTABLE
from pruning.step import SCOPES

DOCS = Path(__file__).parent
PAGE = DOCS / "methods.md"
NAMES_FILE = DOCS.parent / "orchestrator" / "space" / "names.json"
FORMULAS: dict[str, dict[str, str]] = yaml.safe_load((DOCS / "formulas.yaml").read_text(encoding="utf-8"))
HEAD = """# Methods

What a space file may name, by axis, with formulas, papers and options. A method takes its options in
brackets, `finetune(epochs=2)`. `orchestrate list KIND` and `orchestrate show NAME` tell the same.

This page is written by `python docs/write_methods.py`: change the methods, not the page.
"""


def page() -> str:
    """The whole page, as Markdown."""
    kinds = (kind for kind in KINDS if kind != "spaces")
    return "\n".join([HEAD, *(line for kind in kinds for line in _section(kind))])


def _section(kind: str) -> Iterator[str]:
    section = items(kind)
    yield f"## {kind.capitalize()}\n"
    yield f"{'Key' if kind == 'stops' else 'Axis'} `{section[0].axis}`.\n"
    if about := FORMULAS.get(kind, {}).get("about"):
        yield about
    yield from _overview(section)
    for item in section:
        yield from _entry(kind, item)


def _overview(section: Sequence[Item]) -> Iterator[str]:
    papers = any(item.paper for item in section)
    yield "| name | what |" + (" paper |" if papers else "")
    yield "|---|---|" + ("---|" if papers else "")
    for item in section:
        cells = f"| [`{item.name}`](#{_anchor(item)}) | {_cell(item.about)} |"
        yield f"{cells} {item.paper} |" if papers else cells
    yield ""


def _entry(kind: str, item: Item) -> Iterator[str]:
    """One method: formula, text, options, and a line for a space file."""
    yield f"### {item.axis} {item.name}\n"
    if formula := FORMULAS.get(kind, {}).get(item.name):
        yield f"```text\n{formula.rstrip()}\n```\n"
    yield f"{item.text or item.about}\n"
    if item.options:
        yield "| option | values | if not given |\n|---|---|---|"
        for name, option in item.options.items():
            yield f"| `{name}` | {_cell(option.allowed)} | `{option.default!r}` |"
        yield f"\n```yaml\n{item.example()}\n```\n"


def _anchor(item: Item) -> str:
    return f"{item.axis} {item.name}".lower().replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def name_lists() -> dict[str, Any]:  # JSON
    """Return the content of names.json; what other packages add is read from their entry points instead."""
    words = {"scope": SCOPES, "when": get_args(When), "control": get_args(Control), "start": get_args(Start)}
    return {
        "kinds": {kind: _kind(kind) for kind in KINDS},
        "settable_keys": list(SETTABLE),
        "hyperparameter_axes": hyperparameters.names(),
        "words": {axis: list(allowed) for axis, allowed in words.items()},
    }


def _kind(kind: str) -> dict[str, Any]:  # JSON
    if kind == "spaces":  # they are read from their files
        return {"noun": "space"}
    registries: dict[str, Any] = {"models": BUILDERS, "datasets": DATASETS}
    registries |= {name: registry for name, (registry, _) in REGISTRIES.items()}
    registry = registries.get(kind)
    noun, group = ("technique", "") if registry is None else (registry.kind, registry.group)
    summaries = {item.name: item.about for item in items(kind) if item.name not in entries(group)}
    return {"noun": noun, "axis": items(kind)[0].axis, "group": group, "summaries": summaries}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    NAMES_FILE.write_text(json.dumps(name_lists(), indent=1) + "\n", encoding="utf-8")
