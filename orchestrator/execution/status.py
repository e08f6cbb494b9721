"""How far a sweep is, from the store alone: one that runs in another terminal, or one that is over."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from orchestrator.analysis.results import find_sweep, is_planned, latest
from orchestrator.errors import StoreError
from orchestrator.execution.progress import RateEstimate, eta_seconds
from orchestrator.formatting import format_duration
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.storage.locks import is_owner_alive
from orchestrator.storage.uri import redact_uri
from orchestrator.tracking import RunRecord, Tracker, open_store

FAILURES_SHOWN = 5
BEST = "final/val_accuracy"
ENDED = ("FINISHED", "FAILED")  # by themselves; a killed run tells nothing of how long one takes


@dataclass(frozen=True)
class Status:
    """A sweep at one moment. Trials are counted by the plan; each is in one of `done` to `missing`.

    `reused` are those of `done` that another sweep ran. The same of the dense trainings that the trials
    share, without those that no trial needs any more. Seconds of `elapsed` count from the start of
    the process that runs, or last ran, the sweep; `left` is None where nothing tells it.
    """

    space: str
    sweep: str
    state: str  # running, finished or interrupted
    host: str
    pid: int | None
    planned: int
    done: int
    running: int
    stopped: int
    failed: int
    missing: int
    reused: int
    dense_planned: int
    dense_done: int
    dense_running: int
    dense_failed: int
    dense_missing: int
    dense_reused: int
    best_name: str | None
    best_val_accuracy: float | None
    elapsed_seconds: float
    left_seconds: float | None
    failures: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:  # JSON
        failures = [{"name": name, "reason": reason} for name, reason in self.failures]
        return {**asdict(self), "failures": failures}

    def lines(self) -> Iterator[str]:
        """The same for a reader."""
        where = f" on {self.host}, pid {self.pid}" if self.state == "running" and self.pid else ""
        yield f"{self.space}: {self.state}{where}"
        yield f"dense    {self.dense_done}/{self.dense_planned}: {self._dense_counts()}"
        yield f"trials   {self.done + self.stopped}/{self.planned}: {self._counts()}"
        if self.best_val_accuracy is not None:
            yield f"best     {self.best_val_accuracy:.3f} validation accuracy, {self.best_name}"
        left = "" if self.left_seconds is None else f", about {format_duration(self.left_seconds)} left"
        yield f"time     {format_duration(self.elapsed_seconds)}{left}"
        for name, reason in self.failures[:FAILURES_SHOWN]:
            yield f"failed   {name}: {reason}"
        if len(self.failures) > FAILURES_SHOWN:
            yield f"failed   and {len(self.failures) - FAILURES_SHOWN} more"
        yield f"sweep    {self.sweep}"

    def _counts(self) -> str:
        counts = {"running": self.running, "stopped": self.stopped, "failed": self.failed}
        return _counted(self.done, self.reused, {**counts, "missing": self.missing})

    def _dense_counts(self) -> str:
        counts = {"running": self.dense_running, "failed": self.dense_failed, "missing": self.dense_missing}
        return _counted(self.dense_done, self.dense_reused, counts)


def _counted(done: int, reused: int, others: Mapping[str, int]) -> str:
    first = f"{done} done" + (f" ({reused} by other sweeps)" if reused else "")
    return ", ".join([first, *(f"{count} {word}" for word, count in others.items() if count)])


def status(sweep: str | None = None, *, uri: str) -> Status:
    """Where a sweep stands: of a space's name (its latest), a run id, or the latest of all.

    StoreError if there is none.
    """
    tracker = open_store(uri, sweep or "")
    found = find_sweep(tracker, sweep, latest_of_any=True) if sweep else _latest(tracker)
    plan = tracker.read_text(found, PLAN)
    trials = {row["key"]: row for row in load_planned_rows(plan)}
    planned = json.loads(plan).get("search", {}).get("planned", 0)  # a search asks for them as it goes
    runs = tracker.search("tags.point LIKE '_%'", everywhere=True, metric=BEST)
    return _status(found, trials, runs, now=time.time(), unasked=max(0, planned - len(trials)))


def _latest(tracker: Tracker) -> RunRecord:
    """The sweep that is at work, or else the one taken up last, of those that have a plan."""
    rows = tracker.search("tags.kind = 'sweep'", everywhere=True)
    if not rows:
        raise StoreError(f"no sweep in {redact_uri(tracker.uri)}; `orchestrate sweep` runs one")
    ordered = sorted(rows, key=lambda row: (_lives(row), _since(row)), reverse=True)
    return latest(tracker, ordered, is_planned)


def _status(
    sweep: RunRecord,
    trials: Mapping[str, Mapping[str, Any]],
    runs: Sequence[RunRecord],
    *,
    now: float,
    unasked: int = 0,
) -> Status:
    keys = trials.keys() | {row["dense_key"] for row in trials.values()}
    states, alive = _states(sweep, [run for run in runs if run.tags["point"] in keys]), _lives(sweep)
    places = {key: _place(states, key, row["dense_key"]) for key, row in trials.items()}
    count = Counter(places.values())
    done = [states["done"][key] for key in trials if places[key] == "done"]
    open_trials = [key for key, place in places.items() if place in ("running", "missing")]
    dense_keys = {row["dense_key"] for row in trials.values()}
    dense = {name: [run for key, run in found.items() if key in dense_keys] for name, found in states.items()}
    needed = {trials[key]["dense_key"] for key, place in places.items() if place == "missing"}
    dense_missing = sum(all(key not in found for found in states.values()) for key in needed)
    dense_todo = len(dense["running"]) + dense_missing
    host, pid = _holder(sweep)
    best = max(done, key=_val_accuracy, default=None)
    mine = [run for run in runs if _below(sweep, run) and run.start_ms / 1000 >= _since(sweep) - 1]
    end = now if alive else (sweep.end_ms or _last_sign(sweep, runs)) / 1000
    return Status(
        space=sweep.tags.get("space", sweep.name),
        sweep=sweep.run_id,
        state="running" if alive else "finished" if sweep.status == "FINISHED" else "interrupted",
        host=host,
        pid=pid,
        planned=len(trials) + unasked,
        done=len(done),
        running=count["running"],
        stopped=count["stopped"],
        failed=count["failed"],
        missing=count["missing"] + unasked,
        reused=sum(not _below(sweep, run) for run in done),
        dense_planned=sum(map(len, dense.values())) + dense_missing,
        dense_done=len(dense["done"]),
        dense_running=len(dense["running"]),
        dense_failed=len(dense["failed"]),
        dense_missing=dense_missing,
        dense_reused=sum(not _below(sweep, run) for run in dense["done"]),
        best_name=best.name if best else None,
        best_val_accuracy=_val_accuracy(best) if best else None,
        elapsed_seconds=max(0.0, end - _since(sweep)),
        left_seconds=_left(mine, dense_keys, dense_todo, len(open_trials) + unasked, now) if alive else None,
        failures=tuple((run.name, run.tags.get("reason", "unknown")) for run in states["failed"].values()),
    )


def _place(states: Mapping[str, Mapping[str, RunRecord]], key: str, dense_key: str) -> str:
    """The one count that a trial belongs to."""
    found = next((name for name, runs in states.items() if key in runs), None)
    return found or ("failed" if dense_key in states["failed"] else "missing")


def _val_accuracy(run: RunRecord) -> float:
    return run.metrics[BEST]


def _states(sweep: RunRecord, runs: Sequence[RunRecord]) -> dict[str, dict[str, RunRecord]]:
    """Done, running, stopped, failed -> key -> the run that says so; a key is in one of them at most."""
    states: dict[str, dict[str, RunRecord]] = {name: {} for name in ("done", "running", "stopped", "failed")}
    alive = _lives(sweep)
    for run in runs:  # newest first: an older run of the same key says less
        key = run.tags["point"]
        if run.status == "FINISHED" and "key" in run.tags and "invalid" not in run.tags:
            states["done"][key] = run  # of two with one key the older, as everywhere
        elif run.status == "RUNNING" and alive and _below(sweep, run) and is_owner_alive(run.tags["owner"]):
            states["running"].setdefault(key, run)
        elif run.status == "FINISHED" and "stopped_key" in run.tags:
            states["stopped"].setdefault(key, run)
        elif run.status == "FAILED":
            states["failed"].setdefault(key, run)
    taken: set[str] = set()
    for name in states:
        states[name] = {key: run for key, run in states[name].items() if key not in taken}
        taken |= states[name].keys()
    return states


def _left(
    mine: Sequence[RunRecord], dense_keys: Collection[str], dense_todo: int, trials_todo: int, now: float
) -> float | None:
    """Seconds for what is to do, from the runs that the process at work has begun."""
    dense = [run for run in mine if run.tags["point"] in dense_keys]
    trials = [run for run in mine if run.tags["point"] not in dense_keys]
    paces = [_pace(dense, dense_todo, now), _pace(trials, trials_todo, now)]
    return eta_seconds(paces, concurrent=_most_at_once(mine, now))


def _pace(runs: Sequence[RunRecord], todo: int, now: float) -> RateEstimate:
    took = [(run.end_ms - run.start_ms) / 1000 for run in runs if run.status in ENDED and run.end_ms]
    return RateEstimate(todo, took, [now - run.start_ms / 1000 for run in runs if run.status == "RUNNING"])


def _most_at_once(runs: Sequence[RunRecord], now: float) -> int:
    """The most runs that were under way at one moment."""
    steps = [(run.start_ms, 1) for run in runs] + [(run.end_ms or 1000 * now, -1) for run in runs]
    return max(accumulate(step for _, step in sorted(steps)), default=0)


def _last_sign(sweep: RunRecord, runs: Sequence[RunRecord]) -> int:
    """When a sweep whose process died was last heard of: the last time a run of it began or ended."""
    return max((run.end_ms or run.start_ms for run in runs if _below(sweep, run)), default=sweep.start_ms)


def _holder(sweep: RunRecord) -> tuple[str, int | None]:
    """Host and process id of who holds, or last held, the sweep."""
    parts = sweep.tags.get("owner", "").split()
    return (parts[0], int(parts[1])) if len(parts) >= 3 else ("unknown", None)


def _since(sweep: RunRecord) -> float:
    """When the process that holds, or last held, the sweep took it up."""
    parts = sweep.tags.get("owner", "").split()
    started = float(parts[2]) if len(parts) >= 3 else 0.0
    return max(started, sweep.start_ms / 1000)


def _lives(sweep: RunRecord) -> bool:
    return sweep.status == "RUNNING" and is_owner_alive(sweep.tags.get("owner", ""))


def _below(sweep: RunRecord, run: RunRecord) -> bool:
    return run.tags.get("mlflow.parentRunId") == sweep.run_id
