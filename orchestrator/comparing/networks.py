"""The networks of earlier rounds: each was measured, and may be the one to choose."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StoreError

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.store.runs import RunRow, Runs

ROUNDS = "rounds.json"
ONE_ROUND = "one_shot"


def earlier_networks(trials: DataFrame, runs: Iterable[RunRow], tracker: Runs) -> DataFrame:
    """The networks of finished trials after every round but the last, as rows of `results`.

    What was measured of a round stands under `final/`, in place of the trial's own. `runs` hold the
    files; trials of one round are not looked at.
    """
    import pandas

    several = trials[trials["status"] == "finished"]
    if "schedule" in several:
        several = several[~several["schedule"].astype(str).str.startswith(ONE_ROUND)]
    by_id = {run.run_id: run for run in runs}
    table: list[dict[str, Any]] = []  # what pandas makes of JSON
    for trial in several.to_dict("records"):
        run = by_id.get(trial["run_id"])
        if run is not None:
            table += _earlier({str(name): value for name, value in trial.items()}, run, tracker)
    return pandas.DataFrame(table)


def _earlier(trial: dict[str, Any], run: RunRow, tracker: Runs) -> Iterable[dict[str, Any]]:
    try:
        measured = json.loads(tracker.text(run, ROUNDS))
    except StoreError:  # an artifact that is gone: the end of the trial still counts
        return
    for row in measured["data"][:-1]:
        names = dict(zip(measured["columns"], row, strict=True))
        yield {**trial, **{f"final/{name}": value for name, value in names.items()}}
