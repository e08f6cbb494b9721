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
from orchestrator.errors import AwayError, BusyError, OrchestrateError, StoreError
from orchestrator.execution.publish import LONGEST, conclude
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.space.space import Space, load_space
from orchestrator.storage.locks import on_this_host, owner_lives
from orchestrator.storage.outbox import Outbox, Parcel
from orchestrator.storage.runs import COMMAND
from orchestrator.storage.uri import outbox_folder, shown
from orchestrator.system.console import print_line
from orchestrator.tracking import RunRow, Tracker, has_store, line_to
from orchestrator.tracking.delivery import HELD_SECONDS, TRY_SECONDS, deliver_all, results_wait, tracker_of
from orchestrator.tracking.lease import beating, claim
from orchestrator.trial.task import Ended


@dataclass(frozen=True)
class LateSweep:
    """A sweep whose results were delivered. `missing` trials are for the next sweep to run.

    `state` is finished, interrupted (trials are missing), running (elsewhere) or gone (its run is deleted).
    """

    space: str
    sweep: str
    trials: int
    dense: int
    state: str
    missing: int = 0

    def line(self) -> str:
        done = f"{self.space}: {self.trials} trials and {self.dense} dense trainings delivered"
        ends = {
            "finished": "the sweep is finished",
            "interrupted": f"{self.missing} trials are missing, which the same `orchestrate sweep` runs",
            "running": "the sweep is running, and finishes its run itself",
            "gone": "the run of the sweep is not in the store",
        }
        return f"{done}; {ends[self.state]}  {self.sweep}"


@dataclass(frozen=True)
class Delivered:
    """What came to the store; what it refused, and why, by the run's name, waits in `folder`."""

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
            "store": shown(self.uri),
            "delivered": self.runs,
            "sweeps": sweeps,
            "refused": self.refused,
        }

    def lines(self) -> Iterator[str]:
        """The same for a reader."""
        if not self.sweeps and not self.refused:
            yield f"nothing waits for the store {shown(self.uri)}"
        yield from (sweep.line() for sweep in self.sweeps)

    def problem(self) -> str:
        """What to say of results that the store refused; nothing if there are none."""
        if not self.refused:
            return ""
        name, reason = next(iter(self.refused.items()))
        return f"{results_wait(len(self.refused))} in {self.folder} still; {name}: {reason}"


def deliver_late(uri: str) -> Delivered:
    """Deliver all that waits for the store, and finish the runs of its sweeps as the next sweep would.

    Also of those whose results are all there, and whose process died before it could. AwayError, with
    what still waits, where the store cannot be reached; nothing is lost then.
    """
    outbox, arrived = Outbox(outbox_folder(uri)), list[Parcel]()
    refused: dict[str, str] = {}
    if outbox.parcels():
        try:
            tracking.initialise(uri)
            line_to(uri).ask_anew()
            refused = _deliver(uri, outbox, arrived)
        except StoreError as error:
            raise type(error)(f"{error}; {results_wait(outbox.count())} in {outbox.folder}") from error
    elif not _is_there(uri):
        return Delivered(uri, str(outbox.folder), (), {})
    return Delivered(uri, str(outbox.folder), tuple(_finish_sweeps(uri, arrived)), refused)


def _is_there(uri: str) -> bool:
    """Whether the store answers, and can be written: for a sweep that lacks its end alone."""
    try:
        if has_store(uri):
            tracking.initialise(uri)
            return True
    except StoreError:
        pass
    return False


def _deliver(uri: str, outbox: Outbox, arrived: list[Parcel]) -> dict[str, str]:
    """What is refused; what another process is delivering is waited for."""
    end, has_spoken = monotonic() + HELD_SECONDS, False
    while True:
        refused = dict(deliver_all(uri, outbox, on_delivered=arrived.append))
        held = outbox.count() - len(refused)
        if held <= 0:
            return refused
        if monotonic() > end:
            raise AwayError(f"another process has been delivering {held} results for {HELD_SECONDS:.0f} s")
        if not has_spoken:
            print_line(f"another process is delivering {held} results; waiting for it", error=True)
            has_spoken = True
        sleep(TRY_SECONDS / 10)


def _finish_sweeps(uri: str, arrived: Collection[Parcel]) -> Iterator[LateSweep]:
    tracker = Tracker(uri, "")
    with tracker.reaching():
        rows = {row.run_id: row for row in tracker.search("tags.kind = 'sweep'", everywhere=True)}
    spaces = {parcel.opening.parent: parcel.opening.experiment for parcel in arrived}
    counts = Counter((parcel.opening.parent, parcel.opening.kind) for parcel in arrived)
    left = {
        row.run_id: row.tags.get("space", row.name) for row in rows.values() if _lacks_its_end(tracker, row)
    }
    for sweep, space in {**left, **spaces}.items():
        state, missing = "gone", 0
        if sweep in rows:
            state, missing = _finished(tracker_of(uri, space), rows[sweep])
        yield LateSweep(space, sweep, counts[sweep, "trial"], counts[sweep, "dense"], state, missing)


def _lacks_its_end(tracker: Tracker, row: RunRow) -> bool:
    """Whether a dead process of this host left a sweep open of which no trial is missing."""
    holder = row.tags.get("owner", "")
    if row.status != "RUNNING" or not on_this_host(holder) or owner_lives(holder):
        return False
    if not is_planned(tracker, row):
        return False
    plan = tracker.text(row, PLAN)
    keys = {trial["key"] for trial in load_planned_rows(plan)}
    stop = json.loads(plan).get("stop")
    ended = tracker.finished(keys).keys() | tracker.failed(keys).keys()
    ended |= set() if stop is None else tracker.stopped(keys, stop).keys()
    return keys <= ended and not _unasked(plan)


def _finished(tracker: Tracker, row: RunRow) -> tuple[str, int]:
    """Bring the run of a sweep to its end: how it stands then, and how many trials are missing."""
    try:
        with (
            claim(tracker, row.tags["plan_sha256"], name=row.tags.get("space", row.name)) as run,
            beating(tracker, run),
            tracker.reaching(),
        ):
            sweep = tracker.row(run.run_id)
            results = conclude(tracker, sweep, _space(tracker, sweep), Ended(()))
            missing = int((results["status"] == "missing").sum()) + _unasked(tracker.text(sweep, PLAN))
            run.status = "KILLED" if missing else "FINISHED"
    except BusyError:
        return "running", 0
    return ("interrupted" if missing else "finished"), missing


def _unasked(plan: str) -> int:
    """How many points a search has still to ask for."""
    planned = json.loads(plan).get("search", {}).get("planned", 0)
    return max(0, int(planned) - len(load_planned_rows(plan)))


def _space(tracker: Tracker, sweep: RunRow) -> Space | None:
    """The space of a sweep, from its text and its command; None where they do not tell it here."""
    name, command = sweep.tags.get("space", ""), sweep.tags.get(COMMAND, "")
    if not name or Path(name).name != name or not command or len(command) >= LONGEST:
        return None
    try:
        words = shlex.split(command)
        sets = [value for word, value in pairwise(words) if word == "--set"]
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.yaml")
            file.write_text(tracker.text(sweep, "space.yaml"), encoding="utf-8")
            return load_space(str(file), sets)
    except AwayError:
        raise
    except (OrchestrateError, ValueError, OSError):  # of other code, without a plug-in, cut
        return None
