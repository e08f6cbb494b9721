"""Write docs/methods.md, a table of every kind of name that a space file may use, from the registries.

python docs/write_methods.py
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.catalogue import KINDS, Item, items

PAGE = Path(__file__).parent / "methods.md"
HEAD = """# Methods

What a space file may name, by axis. `orchestrate show NAME` tells more of each. A method takes its options
in brackets, `finetune(epochs=2)`. This page is written by `python docs/write_methods.py`: change the
methods, not the page.
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *(_section(kind, items(kind)) for kind in KINDS if kind != "spaces")])


def _section(kind: str, found: tuple[Item, ...]) -> str:
    lines = [f"## {kind.capitalize()}", "", f"Axis `{found[0].axis}`.", ""]
    lines += ["| name | options | what | paper |", "|---|---|---|---|", *map(_row, found)]
    return "\n".join([*lines, ""])


def _row(item: Item) -> str:
    options = "<br>".join(f"`{name}={o.default!r}`: {o.allowed}" for name, o in item.options.items())
    cells = (f"`{item.name}`", options, item.about, item.paper)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
