"""Write docs/methods.md: all that a space file may name, from the registries and docs/formulas.yaml.

python docs/write_methods.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from orchestrator.space.catalog import KINDS, Item, items

DOCS = Path(__file__).parent
PAGE = DOCS / "methods.md"
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
    found = items(kind)
    yield f"## {kind.capitalize()}\n"
    yield f"{'Key' if kind == 'stops' else 'Axis'} `{found[0].axis}`.\n"
    if about := FORMULAS.get(kind, {}).get("about"):
        yield about
    yield from _overview(found)
    for item in found:
        yield from _entry(kind, item)


def _overview(found: Sequence[Item]) -> Iterator[str]:
    papers = any(item.paper for item in found)
    yield "| name | what |" + (" paper |" if papers else "")
    yield "|---|---|" + ("---|" if papers else "")
    for item in found:
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
