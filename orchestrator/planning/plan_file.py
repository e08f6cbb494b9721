"""plan.json: one row per planned trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PLAN = "plan.json"
Record = Mapping[str, Any]  # JSON


def dump_plan(rows: Sequence[Record], **about: object) -> str:
    """Return the rows as JSON: values that all rows share once, the others in columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shared = {name: rows[0][name] for name in names if name != "key" and _same_in_all(rows, name)}
    columns = [name for name in names if name not in shared]
    content = {
        **about,
        "shared": shared,
        "columns": columns,
        "rows": [[r.get(c) for c in columns] for r in rows],
    }
    return json.dumps(content, separators=(",", ":"))


def _same_in_all(rows: Sequence[Record], name: str) -> bool:
    return len({json.dumps(row[name]) if name in row else "" for row in rows}) == 1


def load_planned_rows(text: str) -> list[dict[str, Any]]:
    """Return the rows that `dump_plan` wrote."""
    content = json.loads(text)
    return [
        {**content["shared"], **dict(zip(content["columns"], row, strict=True))} for row in content["rows"]
    ]
