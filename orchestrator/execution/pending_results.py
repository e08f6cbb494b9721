"""Deliver pending results without a sweep."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from orchestrator import tracking
from orchestrator.analysis.results import is_planned
from orchestrator.errors import BusyError, OrchestrateError, StoreError, StoreUnavailableError
from orchestrator.execution.sweep_artifacts import publish_results
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.space.space import Space, load_space
from orchestrator.storage.locks import is_on_this_host, is_owner_alive
from orchestrator.storage.outbox import Outbox, PendingRun
from orchestrator.storage.runs import COMMAND, COMMAND_LENGTH
from orchestrator.storage.uri import outbox_folder, redact_uri
from orchestrator.system.console import print_line
from orchestrator.tracking import RunRecord, Tracker, breaker_for, has_store
from orchestrator.tracking.delivery import (
    FIRST_RETRY_SECONDS,
    HELD_SECONDS,
    count_waiting,
    deliver_all,
    shared_tracker,
)
from orchestrator.tracking.lease import acquire_lease, heartbeat
from orchestrator.trial.task import SweepOutcome


@dataclass(frozen=True)
class LateSweep:
    """A sweep whose results were delivered; its `missing` trials are for the next sweep to run.

    `state` is finished, interrupted (trials are missing), running (in another process) or gone (its run is
    deleted).
    """

    space: str
    sweep: str
    trials: int
    dense: int
    state: str
    missing: int = 0

    def line(self) -> str:
        delivered = f"{self.space}: {self.trials} trials and {self.dense} dense trainings delivered"
        ends = {
            "finished": "the sweep is finished",
            "interrupted": f"{self.missing} trials are missing, which the same `orchestrate sweep` runs",
            "running": "the sweep is running, and finishes its run itself",
            "gone": "the run of the sweep is not in the store",
        }
        return f"{delivered}; {ends[self.state]}  {self.sweep}"


@dataclass(frozen=True)
class Delivery:
    """What was delivered to the store. `refused` maps names of runs to why; they wait in `folder`."""

    uri: str
    folder: str
    sweeps: tuple[LateSweep, ...]
    refused: dict[str, str]

    @property
    def runs(self) -> int:
        return sum(sweep.trials + sweep.dense for sweep in self.sweeps)

    def to_json(self) -> dict[str, Any]:  # JSON
        sweeps = [asdict(sweep) for sweep in self.sweeps]
        return {
            "store": redact_uri(self.uri),
            "delivered": self.runs,
            "sweeps": sweeps,
            "refused": self.refused,
        }

    def lines(self) -> Iterator[str]:
        """Yield the delivery as lines of text."""
        if not self.sweeps and not self.refused:
            yield f"nothing waits for the store {redact_uri(self.uri)}"
        yield from (sweep.line() for sweep in self.sweeps)

    def problem(self) -> str:
        """Return an error message for results that the store refused; nothing if there are none."""
        if not self.refused:
            return ""
        name, reason = next(iter(self.refused.items()))
        return f"{count_waiting(len(self.refused))} in {self.folder} still; {name}: {reason}"


def deliver_late(uri: str) -> Delivery:
    """Deliver all results that wait for the store, and finish the runs of their sweeps.

    Sweeps whose results are all in the store, but whose process died before it finished them, are finished
    too. StoreUnavailableError, with what still waits, if the store cannot be reached; nothing is lost then.
    """
    outbox, arrived = Outbox(outbox_folder(uri)), list[PendingRun]()
    refused: dict[str, str] = {}
    if outbox.pending_runs():
        try:
            tracking.initialise(uri)
            breaker_for(uri).reset()
            refused = _deliver(uri, outbox, arrived)
        except StoreError as error:
            raise type(error)(f"{error}; {count_waiting(outbox.count())} in {outbox.folder}") from error
    elif not _is_usable(uri):
        return Delivery(uri, str(outbox.folder), (), {})
    return Delivery(uri, str(outbox.folder), tuple(_finish_sweeps(uri, arrived)), refused)


def _is_usable(uri: str) -> bool:
    """Return whether there is a store that answers."""
    try:
        if has_store(uri):
            tracking.initialise(uri)
            return True
    except StoreError:
        pass
    return False


def _deliver(uri: str, outbox: Outbox, arrived: list[PendingRun]) -> dict[str, str]:
    """Deliver all, wait for what another process is delivering, and return what the store refused."""
    end, is_announced = monotonic() + HELD_SECONDS, False
    while True:
        refused = dict(deliver_all(uri, outbox, on_delivered=arrived.append))
        remaining = outbox.count() - len(refused)
        if remaining <= 0:
            return refused
        if monotonic() > end:
            raise StoreUnavailableError(
                f"another process has been delivering {remaining} results for {HELD_SECONDS:.0f} s"
            )
        if not is_announced:
            print_line(f"another process is delivering {remaining} results; waiting for it", error=True)
            is_announced = True
        sleep(FIRST_RETRY_SECONDS / 3)


def _finish_sweeps(uri: str, arrived: Collection[PendingRun]) -> Iterator[LateSweep]:
    tracker = Tracker(uri, "")
    with tracker.translating_errors():
        rows = {row.run_id: row for row in tracker.search("tags.kind = 'sweep'", everywhere=True)}
    spaces = {
        row.run_id: row.tags.get("space", row.name) for row in rows.values() if _is_abandoned(tracker, row)
    }
    spaces |= {pending.start.parent: pending.start.experiment for pending in arrived}
    counts = Counter((pending.start.parent, pending.start.kind) for pending in arrived)
    for sweep, space in spaces.items():
        state, missing = "gone", 0
        if sweep in rows:
            state, missing = _finish(shared_tracker(uri, space), rows[sweep])
        yield LateSweep(space, sweep, counts[sweep, "trial"], counts[sweep, "dense"], state, missing)


def _is_abandoned(tracker: Tracker, row: RunRecord) -> bool:
    """Return whether a dead process of this host left a sweep open of which no trial is missing."""
    owner = row.tags.get("owner", "")
    if row.status != "RUNNING" or not is_on_this_host(owner) or is_owner_alive(owner):
        return False
    if not is_planned(tracker, row):
        return False
    plan = tracker.read_text(row, PLAN)
    keys = {trial["key"] for trial in load_planned_rows(plan)}
    stop = json.loads(plan).get("stop")
    ended = tracker.find_all_finished(keys).keys() | tracker.find_all_failed(keys).keys()
    ended |= set() if stop is None else tracker.find_all_stopped(keys, stop).keys()
    return keys <= ended and not _unasked(plan)


def _finish(tracker: Tracker, row: RunRecord) -> tuple[str, int]:
    """Publish the results of a sweep and close its run; return its state and how many trials are missing."""
    try:
        with (
            acquire_lease(tracker, row.tags["plan_sha256"], name=row.tags.get("space", row.name)) as run,
            heartbeat(tracker, run),
            tracker.translating_errors(),
        ):
            sweep = tracker.get_run(run.run_id)
            results = publish_results(tracker, sweep, _load_space(tracker, sweep), SweepOutcome(()))
            missing = int((results["status"] == "missing").sum()) + _unasked(tracker.read_text(sweep, PLAN))
            run.status = "KILLED" if missing else "FINISHED"
    except BusyError:
        return "running", 0
    return ("interrupted" if missing else "finished"), missing


def _unasked(plan: str) -> int:
    """Return how many points a search has still to ask for."""
    planned = json.loads(plan).get("search", {}).get("planned", 0)
    return max(0, int(planned) - len(load_planned_rows(plan)))


def _load_space(tracker: Tracker, sweep: RunRecord) -> Space | None:
    """Return the space of a sweep, from its text and its command; None if they do not give it here."""
    name, command = sweep.tags.get("space", ""), sweep.tags.get(COMMAND, "")
    # A name from the store must not lead out of the folder below; a command of COMMAND_LENGTH was cut.
    if not name or Path(name).name != name or not command or len(command) >= COMMAND_LENGTH:
        return None
    try:
        words = shlex.split(command)
        sets = [value for word, value in pairwise(words) if word == "--set"]
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.yaml")
            file.write_text(tracker.read_text(sweep, "space.yaml"), encoding="utf-8")
            return load_space(str(file), sets)
    except StoreUnavailableError:
        raise
    except (
        OrchestrateError,
        ValueError,
        OSError,
    ):  # of other code, or of a missing plug-in
        return None
