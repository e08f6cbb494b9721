"""Write the tables of docs/benchmarks.md, and its picture, from benchmarks/results/*.json.

    python docs/write_benchmarks.py

A table stands between `<!-- table FILE -->` and `<!-- end -->`; all else on the page is written by hand.
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
HEADER = ("what", "ours", "peer", "ratio", "target", "limit", "reached", "measured")
SIGNS = {"AtMost": "at most ", "AtLeast": "at least ", "Told": ""}
Row = dict[str, Any]  # JSON


def table(name: str) -> str:
    """The rows of a file of results, and below them what there is to say of them; empty without any."""
    place = RESULTS / f"{name}.json"
    if not place.exists():
        return "Not measured yet."
    rows = json.loads(place.read_text(encoding="utf-8"))["rows"]
    if not rows:  # it was skipped
        return "Not measured yet."
    lines = [HEADER, ["---"] * len(HEADER), *(cells(row) for row in rows)]
    notes = dict.fromkeys(f"{row['what']}: {row['note']}" for row in rows if row["note"])
    picture = f"pictures/{name}.png"
    drawn = [f"![{name} in curves]({picture})"] if (PAGE.parent / picture).exists() else []
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines), *notes, machine(rows), *drawn]
    return "\n\n".join(parts)


def cells(row: Row) -> list[str]:
    ratio = "" if row["ratio"] is None else f"{spread(row['ratio'])}"
    if row["ratio"] is not None:
        ratio += " (peer / ours)" if row["kind"] == "AtLeast" else " (ours / peer)"
    peer = "" if row["peer"] is None else f"{spread(row['peer'])} {row['unit']} ({row['peer_name']})"
    aim = "" if row["aim"] is None else f", {row['aim']:g} to aim at"
    target = "" if row["target"] is None else f"{SIGNS[row['kind']]}{row['target']:g}{aim}"
    what = row["what"] if row["measure"] == "seconds" else f"{row['what']}: {row['measure']}"
    return [
        what,
        f"{spread(row['ours'])} {row['unit']}".strip(),
        peer,
        ratio,
        target,
        "" if row["limit"] is None else f"{row['limit']:g}",
        {None: "", True: "yes", False: "**no**"}[row["reached"]],
        row["when"] + (f"; {row['busy']}" if row["busy"] else ""),
    ]


def spread(found: dict[str, float]) -> str:
    """The median, and the quartiles where they differ from it."""
    middle, low, high = (figure(found[name]) for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} [{low}, {high}]"


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine(rows: Sequence[Row]) -> str:
    facts = rows[-1]["environment"]
    versions = ", ".join(f"{name.rpartition('.')[2]} {facts[name]}" for name in facts if "package" in name)
    return f"{facts['processor']}, {facts['cores']} cores; Python {facts['python']}, {versions}."


def written(page: str) -> str:
    """The page with all tables anew."""
    return re.sub(
        r"<!-- table (\w+) -->.*?<!-- end -->",
        lambda found: f"<!-- table {found[1]} -->\n\n{table(found[1])}\n\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import growth

    if (RESULTS / "growth.json").exists():
        growth.draw()
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
