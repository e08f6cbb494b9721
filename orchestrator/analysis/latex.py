"""Tables for papers as LaTeX (booktabs) and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.analysis.paper_tables import PaperTable
from orchestrator.analysis.tables import Table, markdown

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"$^{\S}$",
    "−": "$-$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
COLUMNS_AT_FULL_SIZE = 6
CUT = re.compile(r"^([+-]?[\d.]+) -([\d.]+)/\+([\d.]+)")
MINUS = re.compile(r"(?<![\w\])}])-(?=\d)")


def latex(tables: Sequence[PaperTable]) -> str:
    """Return the tables as LaTeX; the preamble needs `booktabs`, and `textcomp` before 2020."""
    return "\n\n".join(["% \\usepackage{booktabs}", *map(_table, tables)])


def paper_markdown(tables: Sequence[PaperTable]) -> str:
    """Return the tables as Markdown."""
    return markdown(
        [
            Table(
                table.title,
                table.header,
                [_bold_row(table, number) for number in _numbers(table)],
                table.note,
            )
            for table in tables
        ]
    )


def _numbers(table: PaperTable) -> range:
    return range(len(table.rows))


def _bold_row(table: PaperTable, number: int) -> list[str]:
    row = list(table.rows[number])
    if number in table.bold:
        row[table.text_columns] = f"**{row[table.text_columns]}**"
    return row


def _table(table: PaperTable) -> str:
    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    lines = []
    for number in range(len(table.rows)):
        lines += [r"    \addlinespace"] if number in table.breaks else []
        lines.append(f"    {_row(table, number)}")
    caption = escape_latex(f"{table.title} {table.note}".strip())
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{table.label}}}",
            *([r"  \small"] if len(table.header) > COLUMNS_AT_FULL_SIZE else []),
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            "    " + " & ".join(map(escape_latex, table.header)) + r" \\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _row(table: PaperTable, number: int) -> str:
    cells = list(map(escape_latex, table.rows[number]))
    if number in table.bold:
        cells[table.text_columns] = rf"\textbf{{{cells[table.text_columns]}}}"
    # After `\\` or a rule LaTeX takes `[` and `*` for an option of those.
    guard = "{}" if cells[0][:1] in ("[", "*") else ""
    return guard + " & ".join(cells) + r" \\"


def escape_latex(text: str) -> str:
    r"""Return a text for LaTeX: `50 ± 2` as `50 $\pm$ 2`, the ends of a cut interval as a pair."""
    if cut := CUT.match(text):
        ends = f"$^{{+{cut[3]}}}_{{-{cut[2]}}}$"
        return f"{escape_latex(cut[1])}{ends}{escape_latex(text[cut.end() :])}"
    return "".join(SPECIAL.get(sign, sign) for sign in MINUS.sub("−", text))
