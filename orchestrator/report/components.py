"""What a section of the report is made of: blocks of plain data, and the templates that render them.

Nothing here is HTML. Jinja2 escapes every text when it renders templates/blocks.html.j2; only a
`markupsafe.Markup` is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.analysis.tables import Table
from orchestrator.report.charts import Chart, LineStyle


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; an empty one is left out."""

    text: str
    style: str = ""  # a class of style.css


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 3


@dataclass(frozen=True)
class TableBlock:
    """A table whose first columns are texts and whose other columns are numbers, aligned to the right.

    Of more than `max_rows` rows the first are shown, and a line says how many are missing.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    max_rows: int | None = None
    row_name: str = "rows"


@dataclass(frozen=True)
class HeatMap:
    """A table of fractions in whole percent, hotter towards 1; it needs no script.

    `axis` stands above the columns and `corner` above the row names; the columns of `framed` are framed.
    """

    corner: str
    axis: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    framed: Sequence[int] = ()
    max_rows: int = 130
    row_name: str = "rows"


@dataclass(frozen=True)
class Legend:
    """What lines (a style) or symbols (a character) mean."""

    styles: Mapping[str, LineStyle | str]


@dataclass(frozen=True)
class Charts:
    """Charts in as many columns as fit; a single one gets the whole width."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Facts:
    """Names and values, side by side."""

    values: Mapping[str, object]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that fold away under a summary."""

    summary: str
    blocks: Sequence[Block]
    is_open: bool = False


Block = Paragraph | Heading | TableBlock | HeatMap | Legend | Charts | Facts | Code | Details


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]

    @property
    def charts(self) -> list[Chart]:
        return [chart for block in self.blocks if isinstance(block, Charts) for chart in block.charts]


def note(text: str) -> Paragraph:
    """Return a paragraph in small print."""
    return Paragraph(text, style="note")


def from_table(table: Table, *, has_network: bool, max_rows: int) -> TableBlock:
    """Return a table of the comparison, without its first column, the network, unless `has_network`."""
    first = 0 if has_network else 1
    return TableBlock(table.header[first:], [row[first:] for row in table.rows], 2 - first, max_rows)


@cache
def environment() -> Environment:
    """Return the Jinja2 environment of the report, which escapes HTML."""
    templates = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    # The filter `tojson`: in a script element no text can end the element; NaN is no JSON.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return templates


def render_blocks(blocks: Iterable[Block]) -> str:
    """Return the HTML of blocks."""
    return str(environment().get_template("blocks.html.j2").module.render(blocks))  # type: ignore[attr-defined]
