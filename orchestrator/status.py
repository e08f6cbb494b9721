"""How far a sweep is, from the store alone: one that runs in another terminal, or one that is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.address import exists, shown
from orchestrator.errors import StoreError
from orchestrator.ownership import owner_lives
from orchestrator.records import PLAN, find_sweep, planned_rows
from orchestrator.summary import duration
from orchestrator.tracking import RunRow, Tracker, initialise

FAILURES_SHOWN = 5


@dataclass(frozen=True)
class Status:
    """A sweep at one moment. Trials are counted by the plan; each is in one of `done` to `missing`.

    `reused` are those of `done` that another sweep ran. Seconds of `elapsed` count from the start of
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
    dense_running: int
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
        yield f"trials   {self.planned}: {self._counts()}"
        if self.dense_running:
            yield f"dense    {self.dense_running} training now"
        if self.best_val_accuracy is not None:
            yield f"best     {self.best_val_accuracy:.3f} validation accuracy, {self.best_name}"
        left = "" if self.left_seconds is None else f", about {duration(self.left_seconds)} left"
        yield f"time     {duration(self.elapsed_seconds)}{left}"
        for name, reason in self.failures[:FAILURES_SHOWN]:
            yield f"failed   {name}: {reason}"
        if len(self.failures) > FAILURES_SHOWN:
            yield f"failed   and {len(self.failures) - FAILURES_SHOWN} more"
        yield f"sweep    {self.sweep}"

    def _counts(self) -> str:
        done = f"{self.done} done" + (f" ({self.reused} by other sweeps)" if self.reused else "")
        counts = [(self.running, "running"), (self.stopped, "stopped"), (self.failed, "failed")]
        parts = [done, *(f"{count} {word}" for count, word in counts), f"{self.missing} missing"]
        return ", ".join(parts)


def status(sweep: str | None = None, *, uri: str) -> Status:
    """Where a sweep stands: of a space's name (its latest), a run id, or the latest of all.

    StoreError if there is none.
    """
    if not exists(uri):
        raise StoreError(f"there is no store at {shown(uri)}; `orchestrate sweep` makes one")
    initialise(uri)
    tracker = Tracker(uri, sweep or "")
    found = find_sweep(tracker, sweep) if sweep else _latest(tracker)
    trials = {row["key"]: row for row in planned_rows(tracker.text(found, PLAN))}
    runs = tracker.search("tags.point LIKE '_%'", everywhere=True)
    return _status(found, trials, runs, now=time.time())


def _latest(tracker: Tracker) -> RunRow:
    rows = tracker.search("tags.kind = 'sweep'", everywhere=True)
    if not rows:
        raise StoreError(f"no sweep in {shown(tracker.uri)}; `orchestrate sweep` runs one")
    return max(rows, key=lambda row: (_lives(row), _since(row)))


def _status(
    sweep: RunRow, trials: Mapping[str, Mapping[str, Any]], runs: Sequence[RunRow], *, now: float
) -> Status:
    keys = trials.keys() | {row["dense_key"] for row in trials.values()}
    states, alive = _states(sweep, [run for run in runs if run.tags["point"] in keys]), _lives(sweep)
    places = {key: _place(states, key, row["dense_key"]) for key, row in trials.items()}
    count = Counter(places.values())
    done = [states["done"][key] for key in trials if places[key] == "done"]
    open_trials = [key for key, place in places.items() if place in ("running", "missing")]
    open_dense = {trials[key]["dense_key"] for key in open_trials} - states["done"].keys()
    best = max(done, key=_val_accuracy, default=None)
    holder = sweep.tags.get("owner", "").split()
    end = now if alive else (sweep.end_ms or _last_sign(sweep, runs)) / 1000
    return Status(
        space=sweep.tags.get("space", sweep.name),
        sweep=sweep.run_id,
        state="running" if alive else "finished" if sweep.status == "FINISHED" else "interrupted",
        host=holder[0] if len(holder) == 3 else "unknown",
        pid=int(holder[1]) if len(holder) == 3 else None,
        planned=len(trials),
        done=len(done),
        running=count["running"],
        stopped=count["stopped"],
        failed=count["failed"],
        missing=count["missing"],
        reused=sum(not _below(sweep, run) for run in done),
        dense_running=len(states["running"].keys() - trials.keys()),
        best_name=best.name if best else None,
        best_val_accuracy=_val_accuracy(best) if best else None,
        elapsed_seconds=max(0.0, end - _since(sweep)),
        left_seconds=_left(sweep, runs, len(open_trials) + len(open_dense), now=now) if alive else None,
        failures=tuple((run.name, run.tags.get("reason", "unknown")) for run in states["failed"].values()),
    )


def _place(states: Mapping[str, Mapping[str, RunRow]], key: str, dense_key: str) -> str:
    """The one count that a trial belongs to."""
    found = next((name for name, runs in states.items() if key in runs), None)
    return found or ("failed" if dense_key in states["failed"] else "missing")


def _val_accuracy(run: RunRow) -> float:
    return run.metrics["final/val_accuracy"]


def _states(sweep: RunRow, runs: Sequence[RunRow]) -> dict[str, dict[str, RunRow]]:
    """Done, running, stopped, failed -> key -> the run that says so; a key is in one of them at most."""
    states: dict[str, dict[str, RunRow]] = {name: {} for name in ("done", "running", "stopped", "failed")}
    alive = _lives(sweep)
    for run in runs:  # newest first: an older run of the same key says less
        key = run.tags["point"]
        if run.status == "FINISHED" and "key" in run.tags and "invalid" not in run.tags:
            states["done"][key] = run  # of two with one key the older, as everywhere
        elif run.status == "RUNNING" and alive and _below(sweep, run) and owner_lives(run.tags["owner"]):
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


def _left(sweep: RunRow, runs: Sequence[RunRow], todo: int, *, now: float) -> float | None:
    """Seconds for what is to do, at the rate at which this process has finished runs so far."""
    mine = [run for run in runs if _below(sweep, run) and run.start_ms / 1000 >= _since(sweep) - 1]
    finished = [run for run in mine if run.status == "FINISHED" and run.end_ms]
    if not finished:
        return None
    spent = now - min(run.start_ms for run in mine) / 1000
    return todo * spent / len(finished)


def _last_sign(sweep: RunRow, runs: Sequence[RunRow]) -> int:
    """When a sweep whose process died was last heard of: the last time a run of it began or ended."""
    return max((run.end_ms or run.start_ms for run in runs if _below(sweep, run)), default=sweep.start_ms)


def _since(sweep: RunRow) -> float:
    """When the process that holds, or last held, the sweep took it up."""
    parts = sweep.tags.get("owner", "").split()
    started = float(parts[2]) if len(parts) == 3 else 0.0
    return max(started, sweep.start_ms / 1000)


def _lives(sweep: RunRow) -> bool:
    return sweep.status == "RUNNING" and owner_lives(sweep.tags.get("owner", ""))


def _below(sweep: RunRow, run: RunRow) -> bool:
    return run.tags.get("mlflow.parentRunId") == sweep.run_id
