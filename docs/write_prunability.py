"""Write the tables of docs/results/prunability.md from benchmarks/results/prunability.json.

    python docs/write_prunability.py

The tables are between `<!-- table LIBRARY -->` and `<!-- end -->`. The rest of the page is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "prunability.md"
RESULTS = ROOT / "benchmarks" / "results" / "prunability.json"
AMOUNTS = ("0.25", "0.5", "0.75")
HEADER = (
    "network", "parameters", "MACs", "parameters left, %", "MACs left, %", "layers whole", "difference",
    "trace, s", "cut, s", "Torch-Pruning: left, %", "its difference",
)  # fmt: skip
EXACT = 1e-6  # of the largest logit, in float64


def row(record: dict[str, Any]) -> list[str]:
    """Return the cells of one network."""
    ours, peer = record["ours"], record.get("torch_pruning", {})
    name = record["name"].partition(".")[2]
    if "error" in ours:
        return [name, *[""] * 5, ours["error"], "", "", *peer_cells(peer, None)]
    cuts = [ours[amount] for amount in AMOUNTS]
    return [
        name,
        millions(ours["parameters"]),
        millions(ours["macs"]),
        " / ".join(percent(cut["parameters"], ours["parameters"]) for cut in cuts),
        " / ".join(percent(cut["macs"], ours["macs"]) for cut in cuts),
        str(len(ours["whole"])),
        difference(max(cut["difference"] for cut in cuts)),
        f"{ours['trace_seconds']:.1f}",
        f"{max(cut['cut_seconds'] for cut in cuts):.1f}",
        *peer_cells(peer, ours["parameters"]),
    ]


def peer_cells(peer: dict[str, Any], parameters: int | None) -> list[str]:
    if "error" in peer or not peer or parameters is None:
        return ["fails", peer.get("error", "").partition(":")[0]]
    is_wrong = not peer["difference"] <= EXACT  # NaN is wrong, too
    text = difference(peer["difference"])
    return [percent(peer["parameters"], parameters), f"**{text}**" if is_wrong else text]


def millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}"


def difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def table(library: str, records: list[dict[str, Any]]) -> str:
    """Return a line that counts, and the table of one library."""
    of_library = [record for record in records if record["name"].startswith(f"{library}.")]
    if not of_library:
        return "Not measured yet."
    cut = [r for r in of_library if "error" not in r["ours"]]
    exact = sum(max(r["ours"][amount]["difference"] for amount in AMOUNTS) <= EXACT for r in cut)
    peers = [r["torch_pruning"] for r in of_library if "error" not in r.get("torch_pruning", {"error": ""})]
    equal = sum(peer["difference"] <= EXACT for peer in peers)
    count = (
        f"Of {len(of_library)} networks {exact} are cut with equal outputs. Torch-Pruning's pruner cuts "
        f"{len(peers)} of them, {equal} with equal outputs."
    )
    lines = [HEADER, ["---"] * len(HEADER), *(row(record) for record in of_library)]
    return count + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    records = list(json.loads(RESULTS.read_text(encoding="utf-8")).values())
    page = re.sub(
        r"<!-- table (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table {match[1]} -->\n\n{table(match[1], records)}\n\n<!-- end -->",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
