"""Publish tables, figure, report and note of a sweep."""

from __future__ import annotations

import shlex
from threading import Thread
from typing import TYPE_CHECKING

from orchestrator import tracking
from orchestrator.analysis.plots import accuracy_against_sparsity
from orchestrator.analysis.results import load_results
from orchestrator.analysis.tables import default_differences, markdown, tables
from orchestrator.report import html_report
from orchestrator.report.mlflow_page import page_links, publish_sweep_page
from orchestrator.space.space import SPACES, Space
from orchestrator.storage.runs import COMMAND_LENGTH, PICTURE, REPORT, TABLES
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.trial.task import SweepOutcome

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.execution.options import SweepOptions


def reproduce_command(space: Space, options: SweepOptions) -> str:
    """Return the command that gives the same results; how many trials run at once, and where, changes none.

    A space without a name of its own is given as its file, which the run keeps as `space.yaml`.
    """
    file = SPACES / f"{space.name}.yaml"
    is_named = file.is_file() and file.read_text(encoding="utf-8-sig") == space.text
    words = ["orchestrate", "sweep", "--space", space.name if is_named else f"{space.name}.yaml"]
    words += [word for item in space.sets for word in ("--set", item)]
    words += [] if space.source_model is None else ["--from", space.source_model.source]
    words += ["--device", options.device]
    words += [] if options.precision == "fp32" else ["--precision", options.precision]
    words += ["--compile"] if options.compile else []
    words += ["--fast"] if options.fast and options.device == "cuda" else []
    # Of the memory that it leaves a trial micro-batches are planned; on a CPU only processes count.
    if options.gpus_per_trial != 1 and (options.device == "cuda" or options.devices > 1):
        words += ["--gpus-per-trial", f"{options.gpus_per_trial:g}"]
    words += ["--sync-batch-norm"] if options.sync_batch_norm and options.devices > 1 else []
    words += [] if options.stop is None else ["--stop", options.stop]
    return shlex.join(words)[:COMMAND_LENGTH]


def preload_plotting() -> None:
    """Import matplotlib in a thread, half a second's work, while this process waits for its workers."""

    def load() -> None:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401

    Thread(target=load, daemon=True).start()


def publish_results(
    tracker: Tracker, sweep: RunRecord, space: Space | None, outcome: SweepOutcome
) -> DataFrame:
    """Publish tables, picture, report and note in the sweep's run, and return the table of its trials.

    Published twice, they are the same. Without a space the run gets no description.
    """
    if outcome.signal:
        tracker.close_children(sweep.run_id, "interrupted")
    sweep_results = load_results(tracker, sweep)
    results = sweep_results.results
    if space is not None:
        publish_sweep_page(tracker, sweep, space=space, results=results)
    if (results["status"] == "finished").any() and not outcome.signal:  # a stopped sweep ends soon
        table = markdown([*tables(results), *default_differences(results)])
        picture = accuracy_against_sparsity(results, title=sweep.tags.get("space", sweep.name))
        report = html_report(tracker, sweep, loaded=sweep_results)
        tracker.upload(sweep.run_id, {PICTURE: picture, TABLES: table, REPORT: report})
        about = f"{page_links(tracker, sweep)}\n\n{'' if space is None else space.about}"
        tracker.set_tag(sweep.run_id, tracking.NOTE, note(sweep.run_id, about, table))
    return results


def note(run_id: str, about: str, table: str) -> str:
    """Return the description of a sweep's page: about, picture, and as much of the tables as fits."""
    picture = f"![accuracy against sparsity](/get-artifact?path={PICTURE}&run_uuid={run_id})"
    head = f"{about}\n\n{picture}\n\nThe whole report is the artifact {REPORT}.\n\n"
    if len(head) + len(table) <= tracking.NOTE_LENGTH:
        return head + table
    tail = f"\n\nThe rest is in the artifact {TABLES}."
    whole_lines = table[: tracking.NOTE_LENGTH - len(head) - len(tail)].rpartition("\n")[0]
    return head + whole_lines + tail
