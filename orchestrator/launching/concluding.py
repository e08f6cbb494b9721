"""What a sweep's run shows in the end: its tables, picture, report and description."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.comparing.figures import accuracy_against_sparsity
from orchestrator.comparing.records import joined
from orchestrator.comparing.summary import PICTURE, REPORT, TABLES
from orchestrator.comparing.tables import differences_asked, markdown, tables
from orchestrator.launching.outcome import Ended
from orchestrator.pages.sweep_page import links, tell
from orchestrator.report import html_report
from orchestrator.space import Space
from orchestrator.tracking import RunRow, Tracker

if TYPE_CHECKING:
    from pandas import DataFrame


def prepare() -> None:
    """Load what pictures are drawn with, half a second's work, while this process waits for its workers."""
    Thread(target=_load, daemon=True).start()


def _load() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def conclude(tracker: Tracker, sweep: RunRow, space: Space | None, ended: Ended) -> DataFrame:
    """What the sweep's run shows in the end; done twice, it shows the same.

    Where the space is not known its run has no description, and does not say what was swept.
    """
    if ended.signal:
        tracker.close_children(sweep.run_id, "interrupted")
    known = joined(tracker, sweep)
    results = known.results
    if space is not None:
        tell(tracker, sweep, space=space, results=results)
    if (results["status"] == "finished").any() and not ended.signal:  # who stops a sweep does not wait
        table = markdown([*tables(results), *differences_asked(results)])
        picture = accuracy_against_sparsity(results, title=sweep.tags.get("space", sweep.name))
        report = html_report(tracker, sweep, known=known)
        tracker.upload(sweep.run_id, {PICTURE: picture, TABLES: table, REPORT: report})
        about = f"{links(tracker, sweep)}\n\n{'' if space is None else space.about}"
        tracker.set_tag(sweep.run_id, tracking.NOTE, note(sweep.run_id, about, table))
    return results


def note(run_id: str, about: str, table: str) -> str:
    """The description of a sweep's page: what it is, its picture, and as much of the tables as fits."""
    picture = f"![accuracy against sparsity](/get-artifact?path={PICTURE}&run_uuid={run_id})"
    head = f"{about}\n\n{picture}\n\nThe whole report is the artifact {REPORT}.\n\n"
    if len(head) + len(table) <= tracking.NOTE_LENGTH:
        return head + table
    rest = f"\n\nThe rest is in the artifact {TABLES}."
    whole_lines = table[: tracking.NOTE_LENGTH - len(head) - len(rest)].rpartition("\n")[0]
    return head + whole_lines + rest
