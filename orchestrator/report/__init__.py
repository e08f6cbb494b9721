"""The MLflow pages of a store."""

from __future__ import annotations

from orchestrator.analysis.results import SweepResults, load_results
from orchestrator.report.page import page
from orchestrator.report.section import Wanted
from orchestrator.report.swept import Swept
from orchestrator.tracking import RunRecord, Tracker

__all__ = ["Wanted", "html_report"]


def html_report(
    tracker: Tracker, sweep: RunRecord, *, known: SweepResults | None = None, wanted: Wanted | None = None
) -> str:
    """The report of a sweep's run; `known` is what the store was asked for already."""
    return page(Swept(tracker, sweep, known or load_results(tracker, sweep)), wanted or Wanted())
