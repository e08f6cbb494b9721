"""Write the tables of docs/benchmarks.md, and its picture, from benchmarks/results/*.json.

    python docs/write_benchmarks.py

The tables are between `<!-- table FILE -->` and `<!-- end -->`. The rest of the page is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
HEADER = ("what", "ours", "baseline", "ratio", "target", "limit", "reached", "measured")
BOUNDS = {"AtMost": "at most ", "AtLeast": "at least ", "Reported": ""}
Row = dict[str, Any]  # JSON


def table(name: str) -> str:
    """Return the table of a results file, with its notes, machine and picture."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Not measured yet."
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    if not rows:  # the benchmark was skipped
        return "Not measured yet."
    lines = [HEADER, ["---"] * len(HEADER), *(row_cells(row) for row in rows)]
    notes = dict.fromkeys(f"{row['what']}: {row['note']}" for row in rows if row["note"])
    picture = f"pictures/{name}.png"
    image = [f"![Curves of {name}]({picture})"] if (PAGE.parent / picture).exists() else []
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([text, *notes, machine(rows), *image])


def row_cells(row: Row) -> list[str]:
    ratio = baseline = ""
    if row["ratio"] is not None:
        sides = "baseline / ours" if row["kind"] == "AtLeast" else "ours / baseline"
        ratio = f"{quartiles(row['ratio'])} ({sides})"
    if row["baseline"] is not None:
        baseline = f"{quartiles(row['baseline'])} {row['unit']} ({row['baseline_name']})"
    aim = "" if row["aim"] is None else f"; aim {row['aim']:g}"
    target = "" if row["target"] is None else f"{BOUNDS[row['kind']]}{row['target']:g}{aim}"
    what = row["what"] if row["measure"] == "seconds" else f"{row['what']}: {row['measure']}"
    return [
        what,
        f"{quartiles(row['ours'])} {row['unit']}".strip(),
        baseline,
        ratio,
        target,
        "" if row["limit"] is None else f"{row['limit']:g}",
        {None: "", True: "yes", False: "**no**"}[row["reached"]],
        row["when"] + (f"; {row['busy']}" if row["busy"] else ""),
    ]


def quartiles(values: dict[str, float]) -> str:
    """Return the median, and the quartiles if they differ from it."""
    median, low, high = (number(values[name]) for name in ("median", "low", "high"))
    return median if low == high else f"{median} [{low}, {high}]"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine(rows: Sequence[Row]) -> str:
    facts = rows[-1]["environment"]
    versions = ", ".join(f"{name.rpartition('.')[2]} {facts[name]}" for name in facts if "package" in name)
    return f"{facts['processor']}, {facts['cores']} cores; Python {facts['python']}, {versions}."


def update_tables(page: str) -> str:
    """Return the page with all tables replaced."""
    return re.sub(
        r"<!-- table (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table {match[1]} -->\n\n{table(match[1])}\n\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import growth

    if (RESULTS / "growth.json").exists():
        growth.draw_growth()
    PAGE.write_text(update_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
