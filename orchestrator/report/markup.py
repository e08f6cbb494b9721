"""HTML from texts that nobody has checked: everything that is not a `Html` already is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.analysis.tables import Table

NARROW = 8  # columns, up to which there is room between them
Json = Any  # what json can write


class Html(str):
    """Text that is HTML: made by the functions of this module, or written in the source."""


def escaped(content: object) -> Html:
    return content if isinstance(content, Html) else Html(html.escape(str(content), quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """`<name attributes>content</name>`; `class_` is class, a value of None leaves the attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{joined(content)}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(escaped(part) for part in parts))


def paragraph(*content: object, class_: str | None = None) -> Html:
    return tag("p", *content, class_=class_)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, texts: int = 1) -> Html:
    """A table whose first `texts` columns are words, and whose others are numbers, set to the right."""
    head = joined(
        tag("th", cell, scope="col", class_=None if number < texts else "n")
        for number, cell in enumerate(header)
    )
    body = joined(
        (
            tag(
                "tr",
                *(tag("td", cell, class_=None if number < texts else "n") for number, cell in enumerate(row)),
            )
            for row in rows
        ),
        "\n",
    )
    wide = "wide" if len(header) > NARROW else None
    drawn = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_=wide)
    return tag("div", drawn, class_="scroll")


def texts_table(found: Table, *, texts: int = 1, most: int) -> Html:
    """A table of the comparison; of more than `most` rows the first, and a word about the others."""
    shown = table(found.header, found.rows[:most], texts=texts)
    more = len(found.rows) - most
    rest = paragraph(f"{more:,} more rows are not shown.", class_="note") if more > 0 else Html("")
    return joined((shown, rest))


def facts(found: Mapping[str, object]) -> Html:
    """Names and values, side by side."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in found.items()))


def script_json(data: Json) -> Html:
    """JSON for the inside of a script element: no text in it can end the element, or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Html(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def chart_text(text: object) -> str:
    """Text for plotly, which reads tags and entities of its own in titles, ticks and labels."""
    return html.escape(str(text), quote=False)
