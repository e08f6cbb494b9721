"""The results file of a benchmark: its rows, each with the machine and versions that it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.system.files import replace_file
from orchestrator.system.provenance import environment

FACTS = ("processor", "cores", "python", "package.torch", "package.ray", "package.mlflow", "commit")
Row = dict[str, Any]  # JSON


def save_rows(path: Path, name: str, rows: list[Row], *, benchmarks: list[str]) -> None:
    """Replace a benchmark's rows in a results file; rows of benchmarks that no longer exist are dropped."""
    old_rows = json.loads(path.read_text())["rows"] if path.exists() else []
    order = {benchmark: number for number, benchmark in enumerate(benchmarks)}
    other_rows = [row for row in old_rows if row["benchmark"] in order and row["benchmark"] != name]
    facts = environment()
    for row in rows:
        row["environment"] = {fact: facts[fact] for fact in FACTS}
    all_rows = sorted(other_rows + rows, key=lambda row: order[row["benchmark"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"rows": all_rows}, indent=1) + "\n")
