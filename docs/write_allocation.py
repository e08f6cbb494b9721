"""Write the table of docs/results/allocation.md from benchmarks/results/allocation.json.

    python docs/write_allocation.py

The table is between `<!-- table -->` and `<!-- end -->`. The rest of the page is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "allocation.md"
RESULTS = ROOT / "benchmarks" / "results" / "allocation.json"
OTHERS = ("global", "per_mac", "sensitivity")
HEADER = (
    "network",
    "MACs, at most",
    "recovery",
    "`uniform`, accuracy in %",
    *(f"`{name}`" for name in OTHERS),
)
Row = dict[str, Any]


def lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each network, limit and recovery: the accuracy of uniform, and how others differ."""
    settings = dict.fromkeys((row["model"], row["limit"], row["recover"]) for row in rows)
    for model, limit, recover in settings:
        of_setting = {
            row["allocation"]: row
            for row in rows
            if (row["model"], row["limit"], row["recover"]) == (model, limit, recover)
        }
        accuracy = f"{100 * of_setting['uniform']['accuracy']:.1f}"
        differences = [difference(of_setting[name]) for name in OTHERS]
        yield [f"`{model}`", limit.removeprefix("macs "), f"`{recover}`", accuracy, *differences]


def difference(row: Row) -> str:
    """Return the paired difference to uniform in points with its interval; bold where p is below 0.05."""
    text = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"**{text}**" if row["p_holm"] < 0.05 else text


def main() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    table_rows = [HEADER, ["---"] * len(HEADER), *lines(rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in table_rows)
    page = re.sub(
        r"<!-- table -->.*?<!-- end -->",
        lambda match: f"<!-- table -->\n\n{table}\n\n<!-- end -->",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
