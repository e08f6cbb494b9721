"""Write the tables of docs/results/compression.md from benchmarks/results/compression.json.

    python docs/write_compression.py

The tables are between `<!-- table NETWORK -->` and `<!-- end -->`. The rest of the page is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from orchestrator.analysis.intervals import DIFFERENCE, interval

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "compression.md"
RESULTS = ROOT / "benchmarks" / "results" / "compression.json"
OURS, OTHERS = "compress", ("uniform", "torch-pruning")
HEADER = (
    "budget", "by", "test accuracy, %", "`compress` against it, points", "p", "MACs left, %", "latency, ms",
    "training, s", "searching, s",
)  # fmt: skip
Row = dict[str, Any]


def lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each budget and contender."""
    for budget in dict.fromkeys(row["budget"] for row in rows):
        of_budget = [row for row in rows if row["budget"] == budget]
        ours = {row["seed"]: row["accuracy"] for row in of_budget if row["contender"] == OURS}
        for contender in (*OTHERS, OURS):
            own = [row for row in of_budget if row["contender"] == contender]
            gains = [ours[row["seed"]] - row["accuracy"] for row in own if contender != OURS]
            gain = interval(gains, bounds=DIFFERENCE) if gains else None
            search = max(row["search_seconds"] for row in own)
            yield [
                budget,
                contender + "".join(f": {text}" for text in {row["setting"] for row in own} if text),
                interval([row["accuracy"] for row in own]).text(),
                "" if gain is None else gain.text(sign="+"),
                "" if gain is None or gain.p is None else f"{gain.p:.3f}",
                f"{100 * fmean(row['macs'] / row['macs_dense'] for row in own):.1f}",
                f"{median(row['milliseconds'] for row in own):.3f}",
                f"{fmean(row['seconds'] for row in own):.0f}",
                f"{search:.0f}" if search else "",
            ]


def table(record: dict[str, Any] | None) -> str:
    """Return the table of one network."""
    if record is None:
        return "Not measured yet."
    table_rows = [HEADER, ["---"] * len(HEADER), *lines(record["rows"])]
    return "\n".join("| " + " | ".join(line) + " |" for line in table_rows)


def main() -> None:
    records = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = re.sub(
        r"<!-- table (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table {match[1]} -->\n\n{table(records.get(match[1]))}\n\n<!-- end -->",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
