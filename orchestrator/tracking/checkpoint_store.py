"""Checkpoints among the artifacts of a run, in two slots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from safetensors.torch import load, save

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.training.checkpoint import Checkpoint

FOLDER = TAG = "checkpoint"  # the tag says which slot holds, the how-manieth checkpoint it is, its SHA-256
ABOUT = "about"
SLOTS = ("a", "b")


class MlflowCheckpointStore:
    """The checkpoints of one point: written to its run, read from those that it `carries on`.

    `run_id` is None for a run that could not be opened: such a one keeps nothing.
    """

    def __init__(self, tracker: Tracker, run_id: str | None, earlier: Sequence[RunRecord]) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self.earlier = [row for row in earlier if TAG in row.tags]
        self.count = 0  # goes on from run to run: clocks need not agree on which is the newest
        self.written = 0
        self.skipped = 0
        self.carried_on_from = ""

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint of an unfinished run of this point that is as it was written."""
        unfinished = [row for row in self.earlier if row.status != "FINISHED"]
        for row in sorted(unfinished, key=_number, reverse=True):
            try:
                with self.tracker.translating_errors():
                    saved = _read(self.tracker, row)
            except (StoreError, FileNotFoundError):
                saved = None
            if saved is not None:
                self.count, self.carried_on_from = _number(row), row.run_id
                return saved
        return None

    def save(self, saved: Checkpoint) -> None:
        """Write to the other slot, then point at it. Skipped where the store is away; DiskFullError."""
        if self.run_id is None:
            self.skipped += 1
            return
        slot, count = SLOTS[self.written % 2], self.count + 1
        content = save(dict(saved.tensors), {ABOUT: json.dumps(dict(saved.metadata))})
        tag = f"{slot} {count} {hashlib.sha256(content).hexdigest()}"
        try:
            with self.tracker.translating_errors():
                self.tracker.upload(self.run_id, {_path(slot): content})
                self.tracker.set_tag(self.run_id, TAG, tag)
        except StoreUnavailableError:
            self.skipped += 1
            return
        self.count, self.written = count, self.written + 1

    def tags(self) -> Mapping[str, str]:
        """What the finished run says of its checkpoints."""
        carried = {"carried_on_from": self.carried_on_from} if self.carried_on_from else {}
        return carried | ({"checkpoints_skipped": str(self.skipped)} if self.skipped else {})

    def runs(self) -> Iterator[str]:
        """The runs whose checkpoints are of no use once this one is stored."""
        if self.run_id is not None and self.written:
            yield self.run_id
        yield from (row.run_id for row in self.earlier if row.status != "RUNNING")


def delete_checkpoints(tracker: Tracker, run_ids: Iterable[str]) -> list[str]:
    """Remove the checkpoints of these runs; those come back whose store refuses to delete files."""
    return [run_id for run_id in run_ids if not _forgotten(tracker, run_id)]


def _forgotten(tracker: Tracker, run_id: str) -> bool:
    try:
        row = tracker.get_run(run_id)
    except StoreError:
        return True  # it is gone, and its files with it
    try:
        with tracker.translating_errors():
            tracker.delete_files(row, FOLDER)
    except (StoreUnavailableError, DiskFullError):
        raise
    except StoreError:
        return False
    if TAG in row.tags:
        tracker.delete_tag(run_id, TAG)
    return True


def _read(tracker: Tracker, row: RunRecord) -> Checkpoint | None:
    slot, _, sha256 = _parts(row)
    if slot not in SLOTS:
        return None
    content = tracker.read_bytes(row, _path(slot))
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Checkpoint(load(content), json.loads(header["__metadata__"][ABOUT]))


def _number(row: RunRecord) -> int:
    number = _parts(row)[1]
    return int(number) if number.isdecimal() else 0


def _parts(row: RunRecord) -> list[str]:
    """Slot, number and SHA-256; a tag that is none of ours names no slot."""
    parts = row.tags[TAG].split(" ")
    return parts if len(parts) == 3 else ["", "", ""]


def _path(slot: str) -> str:
    return f"{FOLDER}/{slot}.safetensors"
