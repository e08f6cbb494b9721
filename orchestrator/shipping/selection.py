"""The best run of a sweep, by validation accuracy: `orchestrate export SWEEP --best`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.results import RUN_ID, find_sweep, load_results
from orchestrator.errors import StoreError, UsageError
from orchestrator.tracking import open_store

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ACCURACY, MACS, PARAMETERS = "final/val_accuracy", "final/macs_physical", "final/parameters_physical"
ROUNDING = 1e-9  # 0.96 - 0.95 is a little more than 0.01
WITHIN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


@dataclass(frozen=True)
class Choice:
    """One trial of a sweep with its validation accuracy (a fraction), and why it is the one."""

    run_id: str
    sweep: str
    candidates: int
    accuracy: float
    macs: int
    best_accuracy: float
    within: float | None
    eligible: int
    dense_accuracy: float | None

    def reason(self) -> str:
        """Return in a sentence what was chosen among what, and by which numbers."""
        trials = f"{self.candidates:,} finished trials" if self.candidates != 1 else "the one finished trial"
        if self.within is None:
            return (
                f"the most accurate of {trials} of {self.sweep} on validation images: {self.accuracy:.2%}, "
                f"{self.macs:,} MACs"
            )
        points = 100 * self.within
        limit = f"{points:g} {'point' if points == 1 else 'points'}"
        return (
            f"the smallest of {self.eligible:,} of {trials} of {self.sweep} within {limit} of the best on "
            f"validation images, {self.best_accuracy:.2%}: {self.macs:,} MACs, {self.accuracy:.2%} there"
        )

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        yield f"run {self.run_id}: {self.reason()}"
        dense = (
            "" if self.dense_accuracy is None else f"; its dense network has {self.dense_accuracy:.2%} there"
        )
        yield f"chosen by validation accuracy alone{dense}; test images had no part in it"


def parse_within(text: str) -> float:
    """Return `1%` or `0.01` as a fraction; UsageError for anything else, and for `1`, which may mean both."""
    match = WITHIN.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    if match is None or not 0 <= value < 1:
        hint = f"; {text}% or 0.01?" if match and not match[2] else ""
        raise UsageError(f"--within {text[:40]!r}: give points of validation accuracy, such as 1%{hint}")
    return value


def is_sweep(source: str, *, uri: str) -> bool:
    """Return whether a text names a sweep of a store, by its space or by its run's id."""
    try:
        tracker = open_store(uri)
        is_run = RUN_ID.fullmatch(source) and tracker.get_run(source).tags.get("kind") == "sweep"
        return bool(is_run) or source in tracker.experiments()
    except StoreError:
        return False


def choose_best(sweep: str, *, within: float | None = None, uri: str) -> Choice:
    """Return the most accurate finished trial of a sweep, or the smallest within so much of its accuracy.

    Accuracies are those on validation images, sizes the MACs of the network as it is cut out. Of equals the
    one with fewer MACs, then parameters, then the first of the plan. Raises StoreError where no trial has
    finished, and UsageError for a sweep of several data sets, whose accuracies cannot be compared.
    """
    tracker = open_store(uri, sweep)
    results = load_results(tracker, find_sweep(tracker, sweep)).results
    finished = results[results["status"] == "finished"]
    if finished.empty or ACCURACY not in finished:
        raise StoreError(f"no trial of {sweep} has finished; `orchestrate status {sweep}` shows where it is")
    finished = finished[finished[ACCURACY].notna()]
    datasets = list(dict.fromkeys(finished["dataset"]))
    if len(datasets) > 1:
        raise UsageError(
            f"{sweep} has {len(datasets)} data sets ({', '.join(map(str, datasets[:4]))}), and accuracies on "
            f"them do not compare; `orchestrate compare {sweep}` prints run ids: export one of them"
        )
    best = _first(finished, [ACCURACY, MACS, PARAMETERS], [False, True, True])
    eligible = finished[finished[ACCURACY] >= best[ACCURACY] - (within or 0.0) - ROUNDING]
    trial = best if within is None else _first(eligible, [MACS, PARAMETERS, ACCURACY], [True, True, False])
    dense = trial.get("ipa/val_accuracy")
    return Choice(
        str(trial["run_id"]),
        sweep,
        len(finished),
        float(trial[ACCURACY]),
        int(trial[MACS]),
        float(best[ACCURACY]),
        within,
        len(eligible),
        None if dense is None or dense != dense else float(dense),
    )


def _first(rows: DataFrame, columns: list[str], ascending: list[bool]) -> Series:
    return rows.sort_values(columns, ascending=ascending, kind="stable").iloc[0]
