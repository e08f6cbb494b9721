"""The status of a sweep, from the store alone: of one that runs in another terminal, or has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from orchestrator.analysis.results import find_sweep, is_planned, latest
from orchestrator.errors import StoreError
from orchestrator.execution.progress import RateEstimate, counts_text, eta_seconds
from orchestrator.formatting import format_duration
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.storage.locks import is_owner_alive
from orchestrator.storage.uri import redact_uri
from orchestrator.tracking import RunRecord, Tracker, open_store

FAILURES_SHOWN = 5
BEST = "final/val_accuracy"
ENDED = ("FINISHED", "FAILED")  # a killed run says nothing of how long one takes
STATES = ("done", "running", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """A sweep at one moment.

    Trials are counted by the plan; each is in one of `done` to `missing`. `reused` are those of `done`
    that another sweep ran. The dense trainings are counted alike, save those that no trial needs any
    more. `elapsed_seconds` count from the start of the process that runs, or last ran, the sweep;
    `left_seconds` is None if nothing tells how long a run takes.
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
        """Yield the status as lines of text."""
        process = f" on {self.host}, pid {self.pid}" if self.state == "running" and self.pid else ""
        dense = {"running": self.dense_running, "failed": self.dense_failed, "missing": self.dense_missing}
        trials = {"running": self.running, "stopped": self.stopped, "failed": self.failed}
        trials["missing"] = self.missing
        yield f"{self.space}: {self.state}{process}"
        dense_text = _done(self.dense_done, self.dense_reused, dense)
        yield f"dense    {self.dense_done}/{self.dense_planned}: {dense_text}"
        yield f"trials   {self.done + self.stopped}/{self.planned}: {_done(self.done, self.reused, trials)}"
        if self.best_val_accuracy is not None:
            yield f"best     {self.best_val_accuracy:.3f} validation accuracy, {self.best_name}"
        left = "" if self.left_seconds is None else f", about {format_duration(self.left_seconds)} left"
        yield f"time     {format_duration(self.elapsed_seconds)}{left}"
        for name, reason in self.failures[:FAILURES_SHOWN]:
            yield f"failed   {name}: {reason}"
        if len(self.failures) > FAILURES_SHOWN:
            yield f"failed   and {len(self.failures) - FAILURES_SHOWN} more"
        yield f"sweep    {self.sweep}"


def _done(done: int, reused: int, counts: Mapping[str, int]) -> str:
    first = f"{done} done" + (f" ({reused} by other sweeps)" if reused else "")
    return ", ".join(filter(None, (first, counts_text(counts))))


def status(sweep: str | None = None, *, uri: str) -> Status:
    """Return how far a sweep is: of a space's name (its latest), a run id, or the latest of all.

    StoreError if there is none.
    """
    tracker = open_store(uri, sweep or "")
    row = find_sweep(tracker, sweep, latest_of_any=True) if sweep else _latest(tracker)
    plan = tracker.read_text(row, PLAN)
    trials = {trial["key"]: trial["dense_key"] for trial in load_planned_rows(plan)}
    planned = json.loads(plan).get("search", {}).get("planned", 0)  # a search asks for points as it goes
    runs = tracker.search("tags.point LIKE '_%'", everywhere=True, metric=BEST)
    return make_status(row, trials, runs, now=time.time(), unasked=max(0, planned - len(trials)))


def _latest(tracker: Tracker) -> RunRecord:
    """Return the sweep that runs, or else the one that ran last, of those that have a plan."""
    rows = tracker.search("tags.kind = 'sweep'", everywhere=True)
    if not rows:
        raise StoreError(f"no sweep in {redact_uri(tracker.uri)}; `orchestrate sweep` runs one")
    ordered = sorted(rows, key=lambda row: (_is_alive(row), _owner(row)[2]), reverse=True)
    return latest(tracker, ordered, is_planned)


@dataclass(frozen=True)
class SweepCounts:
    """The runs of a sweep's tasks by state: state -> key -> the run that shows it.

    `blocked` are trials without a run whose dense network failed, `missing` all others without one, and
    `missing_dense` the dense networks that those need.
    """

    states: Mapping[str, Mapping[str, RunRecord]]
    dense: Mapping[str, Mapping[str, RunRecord]]
    trials: Mapping[str, Mapping[str, RunRecord]]  # in the plan's order
    blocked: int
    missing: int
    missing_dense: int

    @classmethod
    def of_runs(
        cls, sweep: RunRecord, dense_keys: Mapping[str, str], runs: Sequence[RunRecord]
    ) -> SweepCounts:
        """Count the runs of a plan; `dense_keys` are those of its trials' dense networks, by trial."""
        networks = set(dense_keys.values())
        keys = networks | dense_keys.keys()
        states = _runs_by_state(sweep, [run for run in runs if run.tags["point"] in keys])
        dense = {name: {k: run for k, run in rows.items() if k in networks} for name, rows in states.items()}
        trials = {name: {k: rows[k] for k in dense_keys if k in rows} for name, rows in states.items()}
        without_run = dense_keys.keys() - set().union(*trials.values())
        blocked = {key for key in without_run if dense_keys[key] in states["failed"]}
        missing_dense = {dense_keys[key] for key in without_run - blocked} - set().union(*dense.values())
        missing = len(without_run) - len(blocked)
        return cls(states, dense, trials, len(blocked), missing, len(missing_dense))

    def failures(self) -> tuple[tuple[str, str], ...]:
        """Return the name of each failed run, and why it failed."""
        return tuple((run.name, run.tags.get("reason", "unknown")) for run in self.states["failed"].values())


def make_status(
    sweep: RunRecord,
    dense_keys: Mapping[str, str],
    runs: Sequence[RunRecord],
    *,
    now: float,
    unasked: int = 0,
) -> Status:
    """Return the status of a sweep by its runs, newest first, at the time `now` in seconds.

    `dense_keys` maps the keys of the plan's trials to those of their dense networks; a search has `unasked`
    trials still to ask for.
    """
    counts, is_alive = SweepCounts.of_runs(sweep, dense_keys, runs), _is_alive(sweep)
    dense, trials, missing = counts.dense, counts.trials, counts.missing + unasked
    done = list(trials["done"].values())
    best = max(done, key=lambda run: run.metrics[BEST], default=None)
    host, pid, started = _owner(sweep)
    end = now if is_alive else (sweep.end_ms or _last_event_ms(sweep, runs)) / 1000
    return Status(
        space=sweep.tags.get("space", sweep.name),
        sweep=sweep.run_id,
        state="running" if is_alive else _final_state(sweep),
        host=host,
        pid=pid,
        planned=len(dense_keys) + unasked,
        done=len(done),
        running=len(trials["running"]),
        stopped=len(trials["stopped"]),
        failed=len(trials["failed"]) + counts.blocked,
        missing=missing,
        reused=sum(not _is_child(sweep, run) for run in done),
        dense_planned=sum(map(len, dense.values())) + counts.missing_dense,
        dense_done=len(dense["done"]),
        dense_running=len(dense["running"]),
        dense_failed=len(dense["failed"]),
        dense_missing=counts.missing_dense,
        dense_reused=sum(not _is_child(sweep, run) for run in dense["done"].values()),
        best_name=best.name if best else None,
        best_val_accuracy=best.metrics[BEST] if best else None,
        elapsed_seconds=max(0.0, end - started),
        left_seconds=_seconds_left(sweep, counts, dense_keys, runs, now, unasked) if is_alive else None,
        failures=counts.failures(),
    )


def _runs_by_state(sweep: RunRecord, runs: Sequence[RunRecord]) -> dict[str, dict[str, RunRecord]]:
    """Return state -> key -> the run that shows it; a key is in one state at most."""
    states: dict[str, dict[str, RunRecord]] = {name: {} for name in STATES}
    is_alive = _is_alive(sweep)
    for run in runs:  # newest first: an older run of the same key says less
        key = run.tags["point"]
        if run.status == "FINISHED" and "key" in run.tags and "invalid" not in run.tags:
            states["done"][key] = run  # of two with one key the older, as everywhere
        elif run.status == "RUNNING" and is_alive and _is_child(sweep, run):
            if is_owner_alive(run.tags["owner"]):
                states["running"].setdefault(key, run)
        elif run.status == "FINISHED" and "stopped_key" in run.tags:
            states["stopped"].setdefault(key, run)
        elif run.status == "FAILED":
            states["failed"].setdefault(key, run)
    keys: set[str] = set()
    for name in STATES:
        states[name] = {key: run for key, run in states[name].items() if key not in keys}
        keys |= states[name].keys()
    return states


def _seconds_left(
    sweep: RunRecord,
    counts: SweepCounts,
    dense_keys: Mapping[str, str],
    all_runs: Sequence[RunRecord],
    now: float,
    unasked: int,
) -> float | None:
    """Return the seconds for what is to do, estimated from the runs that the process at work has started."""
    since_ms = 1000 * (_owner(sweep)[2] - 1)
    runs = [run for run in all_runs if _is_child(sweep, run) and run.start_ms >= since_ms]
    networks = set(dense_keys.values())
    dense_todo = len(counts.dense["running"]) + counts.missing_dense
    trials_todo = len(counts.trials["running"]) + counts.missing + unasked
    rates = [
        _rate([run for run in runs if run.tags["point"] in networks], dense_todo, now),
        _rate([run for run in runs if run.tags["point"] not in networks], trials_todo, now),
    ]
    # The most runs that were open at one moment are how many run at once.
    events = [(run.start_ms, 1) for run in runs] + [(run.end_ms or 1000 * now, -1) for run in runs]
    concurrent = max(accumulate(step for _, step in sorted(events)), default=0)
    return eta_seconds(rates, concurrent=concurrent)


def _rate(runs: Sequence[RunRecord], todo: int, now: float) -> RateEstimate:
    durations = [(run.end_ms - run.start_ms) / 1000 for run in runs if run.status in ENDED and run.end_ms]
    running = [now - run.start_ms / 1000 for run in runs if run.status == "RUNNING"]
    return RateEstimate(todo, durations, running)


def _last_event_ms(sweep: RunRecord, runs: Sequence[RunRecord]) -> int:
    """Return when a run of a sweep last began or ended: the last sign of a process that died."""
    return max((run.end_ms or run.start_ms for run in runs if _is_child(sweep, run)), default=sweep.start_ms)


def _owner(sweep: RunRecord) -> tuple[str, int | None, float]:
    """Return host and pid of the process that owns, or last owned, the sweep, and when it took it up."""
    words, created = sweep.tags.get("owner", "").split(), sweep.start_ms / 1000
    if len(words) < 3:
        return "unknown", None, created
    return words[0], int(words[1]), max(float(words[2]), created)


def _is_alive(sweep: RunRecord) -> bool:
    return sweep.status == "RUNNING" and is_owner_alive(sweep.tags.get("owner", ""))


def _final_state(sweep: RunRecord) -> str:
    return "finished" if sweep.status == "FINISHED" else "interrupted"


def _is_child(sweep: RunRecord, run: RunRecord) -> bool:
    return run.tags.get("mlflow.parentRunId") == sweep.run_id
