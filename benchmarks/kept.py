"""The rows of benchmarks as files, each with what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.system.files import replace_file
from orchestrator.system.provenance import environment

FACTS = ("processor", "cores", "python", "package.torch", "package.ray", "package.mlflow", "commit")
Row = dict[str, Any]  # JSON


def keep(place: Path, name: str, rows: list[Row], *, known: list[str]) -> None:
    """Put a benchmark's rows in the place of those that it had; those that are gone are dropped."""
    before = json.loads(place.read_text())["rows"] if place.exists() else []
    order = {benchmark: number for number, benchmark in enumerate(known)}
    kept = [row for row in before if row["benchmark"] in order and row["benchmark"] != name]
    facts = environment()
    for row in rows:
        row["environment"] = {name: facts[name] for name in FACTS}
    every = sorted(kept + rows, key=lambda row: order[row["benchmark"]])
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps({"rows": every}, indent=1) + "\n")
