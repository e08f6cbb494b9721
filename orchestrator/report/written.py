"""A report as a file of its own, from the store alone."""

from __future__ import annotations

from pathlib import Path

from orchestrator.analysis.intervals import IntervalMethod
from orchestrator.analysis.paired import read_baseline
from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.errors import UsageError
from orchestrator.report import Wanted, html_report
from orchestrator.system.files import replace_file
from orchestrator.tracking import open_store


def write_report(
    sweep: str,
    *,
    uri: str,
    out: Path | None = None,
    baseline: str | None = None,
    tolerance: float = 0.01,
    how: IntervalMethod = "t",
) -> Path:
    """Write the report of a sweep, by default to SPACE.html in the working directory; where it lies.

    StoreError if there is no such sweep; UsageError where the file cannot be written.
    """
    tracker = open_store(uri, sweep)
    run = find_sweep(tracker, sweep)
    known = load_results(tracker, run)
    compared_with = None if baseline is None else read_baseline(baseline, known.results)
    wanted = Wanted(tolerance, how, compared_with)
    text = html_report(tracker, run, known=known, wanted=wanted)
    place = (out or Path(Path(f"{known.plan.get('space', run.name)}.html").name)).absolute()
    try:
        replace_file(place, text)
    except OSError as error:
        raise UsageError(f"--out {place}: {error.strerror}; name a file that can be written") from error
    return place
