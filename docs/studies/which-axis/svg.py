"""Make SVG of matplotlib smaller, without a change of what it shows."""

from __future__ import annotations

import re

DIGITS = re.compile(r"(\d+\.\d\d)\d+")  # a hundredth of a point is enough
GROUP_ID = re.compile(r' id="(?:line2d|text|patch|[xy]tick|axes|matplotlib\.axis|figure|legend)_\d+"')
USE = re.compile(r'(<use xlink:href="#(\w+)"[^>]*?) style="([^"]*)"/>')
INDENT = re.compile(r"\n +")


def shrink(text: str) -> str:
    """Return an SVG with coordinates of two decimals, without ids that nothing names and without indentation.

    A marker's style stands once at its shape in place of at every point.
    """
    styles: dict[str, set[str]] = {}
    for _, name, style in USE.findall(text):
        styles.setdefault(name, set()).add(style)
    shared = {name: next(iter(of_name)) for name, of_name in styles.items() if len(of_name) == 1}
    text = USE.sub(lambda m: f"{m[1]}/>" if m[2] in shared else m[0], text)
    for name, style in shared.items():
        # Its own style comes last, and so decides, as it does over what a point hands down.
        text = re.sub(rf'(<path id="{name}"[^>]*?) style="([^"]*)"', rf'\1 style="{style}; \2"', text)
    return INDENT.sub("\n", GROUP_ID.sub("", DIGITS.sub(r"\1", text)))
