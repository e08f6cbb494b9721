"""A sweep as one HTML file that needs no network; and what the MLflow UI shows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.analysis.results import SweepResults
    from orchestrator.report.data import ReportOptions
    from orchestrator.tracking import RunRecord, Tracker


def html_report(
    tracker: Tracker,
    sweep: RunRecord,
    *,
    loaded: SweepResults | None = None,
    options: ReportOptions | None = None,
) -> str:
    """Return the report of a sweep's run; `loaded` saves reading its results again."""
    # Imported late: `orchestrate ui` and the start of a sweep import this package and need no report.
    from orchestrator.analysis.results import load_results
    from orchestrator.report.data import ReportData, ReportOptions
    from orchestrator.report.page import render_page

    data = ReportData(tracker, sweep, loaded or load_results(tracker, sweep))
    return render_page(data, options or ReportOptions())
