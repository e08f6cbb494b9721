"""How the points of the plan ended: what failed, what was stopped, what was left out, and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.analysis.notes import stopped_note, stopped_settings
from orchestrator.report.markup import Html, joined, paragraph, table, tag
from orchestrator.report.section import Section
from orchestrator.report.swept import Swept

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_REASONS = 30
MOST_SEEDS = 3  # whose reasons are told


def ends(swept: Swept) -> Section:
    status = swept.results["status"]
    excluded = [(str(item["reason"]), int(item["count"])) for item in swept.joined.plan.get("excluded", ())]
    found = {
        "Failed": _reasons(swept, "failed"),
        "Never tried: excluded from the plan": excluded,
        "Finished, with something to note": _notes(swept),
    }
    counts = Counter(status)
    line = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()))
    parts: list[Html] = [paragraph(f"{len(status):,} trials were planned: {line}.")]
    if counts["missing"]:
        parts.append(paragraph("What is missing runs when the sweep is started again.", class_="note"))
    parts += _stopped(swept)
    parts += [_list(title, reasons) for title, reasons in found.items() if reasons]
    if not any(found.values()) and not counts["missing"] and not counts["stopped"]:
        parts = [
            paragraph(f"All {len(status):,} trials of the plan have finished, and nothing was left out.")
        ]
    return Section("ends", "What did not make it", joined(parts))


def _reasons(swept: Swept, status: str) -> list[tuple[str, int]]:
    rows = swept.results[swept.results["status"] == status]
    return Counter(str(reason) for reason in rows["reason"]).most_common()


def _stopped(swept: Swept) -> list[Html]:
    """Each setting of which seeds were stopped, how many, and why: round by round, without its numbers."""
    shown = list(stopped_settings(swept.results))
    if not shown:
        return []
    rows = [
        (one.label, f"{one.count('stopped')} of {len(one.rows)}", _why(one.rows))
        for one in shown[:MOST_REASONS]
    ]
    note = stopped_note(swept.results)
    more = len(shown) - MOST_REASONS
    return [
        tag("h3", "Stopped early"),
        paragraph(note) if note else Html(""),
        table(["setting", "seeds stopped", "why"], rows, texts=1),
        paragraph(f"{more:,} more settings are not shown.", class_="note") if more > 0 else Html(""),
    ]


def _why(rows: DataFrame) -> str:
    stopped = rows[rows["status"] == "stopped"].sort_values("seed")
    pairs = zip(stopped["seed"], stopped["reason"], strict=True)
    reasons = [f"seed {seed}: {reason}" for seed, reason in pairs]
    more = len(reasons) - MOST_SEEDS
    return "; ".join(reasons[:MOST_SEEDS]) + (f"; and {more} more" if more > 0 else "")


def _notes(swept: Swept) -> list[tuple[str, int]]:
    return Counter(str(note) for note in swept.finished["notes"] if note).most_common()


def _list(title: str, reasons: list[tuple[str, int]]) -> Html:
    rows = [(reason, f"{count:,}") for reason, count in reasons[:MOST_REASONS]]
    more = len(reasons) - MOST_REASONS
    rest = paragraph(f"{more:,} more reasons are not shown.", class_="note") if more > 0 else Html("")
    return joined((tag("h3", title), table(["reason", "trials"], rows), rest))
