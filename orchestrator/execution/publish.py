"""Publish tables, figure, report and note of a sweep."""

from __future__ import annotations

import shlex
from threading import Thread
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.analysis.plots import accuracy_against_sparsity
from orchestrator.analysis.results import load_results
from orchestrator.analysis.tables import differences_asked, markdown, tables
from orchestrator.report import html_report
from orchestrator.report.mlflow_page import links, tell
from orchestrator.space.space import SPACES, Space
from orchestrator.storage.runs import PICTURE, REPORT, TABLES
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.trial.task import SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.execution.options import SweepOptions

LONGEST = 4000  # characters; the store cuts tags at 8000


def reproduce_command(space: Space, options: SweepOptions) -> str:
    """What brings the same points to the same results; how many run at once, and where, changes none.

    A space that is no named one is called by its file, which the run keeps under `space.yaml`.
    """
    own = SPACES / f"{space.name}.yaml"
    named = own.is_file() and own.read_text(encoding="utf-8-sig") == space.text
    words = ["orchestrate", "sweep", "--space", space.name if named else f"{space.name}.yaml"]
    words += [word for item in space.sets for word in ("--set", item)]
    words += [] if space.source_model is None else ["--from", space.source_model.source]
    words += ["--device", options.device]
    words += [] if options.precision == "fp32" else ["--precision", options.precision]
    words += [] if options.stop is None else ["--stop", options.stop]
    return shlex.join(words)[:LONGEST]


def preload_plotting() -> None:
    """Load what pictures are drawn with, half a second's work, while this process waits for its workers."""
    Thread(target=_load, daemon=True).start()


def _load() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def publish_results(
    tracker: Tracker, sweep: RunRecord, space: Space | None, ended: SweepOutcome
) -> DataFrame:
    """What the sweep's run shows in the end; done twice, it shows the same.

    Where the space is not known its run has no description, and does not say what was swept.
    """
    if ended.signal:
        tracker.close_children(sweep.run_id, "interrupted")
    known = load_results(tracker, sweep)
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
