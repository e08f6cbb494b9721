"""A sweep that is disturbed again and again at random moments, and carried on each time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from descendants import leftovers, named
from disk import free
from faults import FAULTS, WORKER, World
from small_space import LONGEST, POINTS, Place, begun, finished

from orchestrator.storage.outbox import Outbox
from orchestrator.storage.uri import outbox_folder
from orchestrator.tracking import RunRecord

EARLY = 0.3  # of the kills that can be done while the sweep still starts, before there may be a store
EARLY_SECONDS = 8.0
LEFT_SECONDS = 20.0  # within which what was started by a dead driver has noticed


@dataclass
class Row:
    """What a kill did. `again` counts points that had finished and were begun once more."""

    number: int
    killed: str
    store: str
    finished_then: int
    exit_code: int = 0
    seconds: float = 0.0
    again: int = 0
    duplicates: int = 0
    left_running: int = 0
    left_processes: int = 0
    left_folders: int = 0
    bits_equal: bool = True
    is_early: bool = False  # it was meant for the start of the sweep
    wrong: list[str] = field(default_factory=list)  # in words

    def cells(self) -> list[str]:
        values = [getattr(self, name) for name in NAMES]
        return [
            {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) for value in values
        ]


NAMES = [name for name in Row.__dataclass_fields__ if name not in ("is_early", "wrong")]
TITLES = [name.replace("_", " ") for name in NAMES]


@dataclass
class Storm:
    """One sweep and all that happens to it; `first` is the number of its first kill."""

    place: Place
    world: World
    reference: dict[str, object]
    first: int
    store: str
    rows: list[Row] = field(default_factory=list)
    _is_swept: bool = True  # no killed driver has left anything, which the next sweep removes
    _was_away: bool = False  # the server, since the sweep was started
    _finished: list[Counter[str]] = field(default_factory=list)
    _begun: list[Counter[str]] = field(default_factory=list)

    def run(self, kinds: Sequence[str]) -> list[Row]:
        """Each kind once, in this order, and then the sweep to its end."""
        left, code = list(kinds), -1
        while left or code:
            open_rows = len(self.rows)
            with self.place.log.open("ab") as log:
                process = self.place.start(log)
            try:
                code = self._attempt(process, left)
            finally:
                process.kill()
                process.wait()
            for row in self.rows[open_rows:]:
                self._look(row, code)
            if not left and code and len(self.rows) == open_rows:  # nobody disturbed it
                self.rows[-1].wrong.append(f"the same command did not carry on: exit {code}")
                break
        self._end()
        return self.rows

    def _attempt(self, process: subprocess.Popen[bytes], left: list[str]) -> int:
        """Run the sweep once, until a kill ends it; its exit code."""
        self._was_away = False
        while left and process.poll() is None:
            kind = left.pop(0)
            self._was_away |= kind == "server"
            self._hit(process, kind, to_come=len(left))
            if FAULTS[kind].seconds:
                break
        code = process.wait(LONGEST)
        if self.world.disk is not None:
            free(self.world.disk)
        return code

    def _hit(self, process: subprocess.Popen[bytes], kind: str, *, to_come: int) -> None:
        fault, dice = FAULTS[kind], self.world.dice
        rows: list[RunRecord] = []
        is_early = fault.is_early and dice.random() < EARLY
        if is_early:
            with suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0.0, EARLY_SECONDS))
        else:
            rows = self._wait_for_points(process, to_come)
        self._finished.append(finished(rows))
        self._begun.append(begun(rows))
        row = Row(self.first + len(self.rows), kind, self.store, len(self._finished[-1]))
        row.is_early = is_early
        self.rows.append(row)
        size, started = self.place.log.stat().st_size, time.monotonic()
        code = fault.strike(process, self.world) if process.poll() is None else None
        if code is None:
            row.killed = f"{kind} (too late)"
        elif fault.seconds:
            self._check_end(process, row, code, size, started)

    def _wait_for_points(self, process: subprocess.Popen[bytes], to_come: int) -> list[RunRecord]:
        """Until some more points are finished, and a little longer; or until the sweep is over."""
        dice = self.world.dice
        while process.poll() is None and not named(WORKER, process.pid):
            time.sleep(0.2)  # the store is the sweep's to make, and to mend
        rows = self.place.runs()
        now = len(finished(rows))
        goal = now + dice.randrange(max(1, (POINTS - now) // (to_come + 2)) + 1)
        while process.poll() is None and len(finished(rows)) < goal:
            time.sleep(0.4)
            rows = self.place.runs()
        with suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.0, 0.5))
        return rows

    def _check_end(
        self, process: subprocess.Popen[bytes], row: Row, code: int, log_size: int, started: float
    ) -> None:
        """How the sweep ended, and how soon."""
        fault = FAULTS[row.killed]
        with suppress(subprocess.TimeoutExpired):
            process.wait(LONGEST)
        row.seconds, row.exit_code = round(time.monotonic() - started, 1), process.poll() or 0
        said = self.place.log.read_bytes()[log_size:].decode(errors="replace")
        if process.poll() == 0:  # it was over before it felt anything
            row.killed += " (too late)"
            return
        allowed = {code, 128 - code} if code > 128 and not row.finished_then else {code}  # before it listens
        if process.poll() not in allowed:
            row.wrong.append(f"exit {process.poll()} and not {code}: {said[-500:]}")
        if row.seconds > fault.seconds:
            row.wrong.append(f"it ended after {row.seconds} seconds, and not within {fault.seconds}")
        if fault.last_words not in said:
            row.wrong.append(f"it did not say {fault.last_words!r}: {said[-500:]}")

    def _look(self, row: Row, code: int) -> None:
        """What is left after an attempt has ended; after a killed driver, what no process can put off."""
        if code == -signal.SIGKILL:
            self._is_swept = False
            return
        if not self._is_swept and row.is_early:  # perhaps before it started Ray
            return
        self._is_swept = True
        server = self.world.server.process if self.world.server else None
        processes = leftovers(LEFT_SECONDS, but=server.pid if server else 0)
        row.left_processes = len(processes)
        row.wrong += [f"a process is left: {name}" for name in processes]
        folders = [path.name for path in self.place.temporary.iterdir()]
        row.left_folders = len(folders)
        row.wrong += [f"a folder is left: {name}" for name in folders]
        # What cannot be written to, or has just been away: the next sweep closes its runs.
        if not row.killed.startswith("disk") and not self._was_away:
            row.left_running = self._running()
        row.bits_equal = all(self.reference[key] == bits for key, bits in self.place.bits().items())

    def _running(self) -> int:
        """Runs that look as if somebody were at them."""
        return len(self.place.tracker.search("attributes.status = 'RUNNING'")) if self.place.runs() else 0

    def _end(self) -> None:
        """Every key once, with the bits of an undisturbed sweep, and nothing that waits or runs."""
        rows = self.place.runs()
        starts, ends, running = begun(rows), finished(rows), self._running()
        equal = self.place.bits() == self.reference
        waiting = Outbox(outbox_folder(self.place.uri, str(self.place.folder / "state"))).pending_runs()
        for row, before, started in zip(self.rows, self._finished, self._begun, strict=True):
            row.again = sum(starts[key] > started[key] for key in before)
            row.duplicates = sum(count > 1 for count in ends.values())
            row.left_running = max(row.left_running, running)
            row.left_folders += len(waiting)
            row.bits_equal = row.bits_equal and equal
            for name in ("again", "duplicates", "left_running", "left_folders"):
                if value := getattr(row, name):
                    row.wrong.append(f"{name.replace('_', ' ')}: {value}")
            if not row.bits_equal:
                row.wrong.append("the results are not those of an undisturbed sweep")
