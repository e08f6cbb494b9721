"""Store checkpoints among the artifacts of a run, in two slots.

A checkpoint is written to the slot that is not in use, and then a tag names that slot: a process killed while
writing leaves the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from safetensors.torch import load, save

from orchestrator.errors import DiskFullError, StoreError, StoreUnavailableError
from orchestrator.tracking import RunRecord, Tracker
from orchestrator.training.checkpoint_packing import Checkpoint

FOLDER = TAG = "checkpoint"  # the tag holds the slot, the number and the SHA-256 of the latest checkpoint
METADATA = "about"
SLOTS = ("a", "b")


class MlflowCheckpointStore:
    """The checkpoints of one task: written to its run, and read from `earlier` runs of the task.

    `run_id` is None if the store did not answer when the run started: then nothing is stored.
    """

    def __init__(self, tracker: Tracker, run_id: str | None, earlier: Sequence[RunRecord]) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self.earlier = [row for row in earlier if TAG in row.tags]
        self.count = 0  # continued from run to run: the clocks of two hosts need not agree on the newest
        self.written = 0
        self.skipped = 0
        self.carried_on_from = ""

    def load_latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint of an unfinished run of the task, or None."""
        unfinished = [row for row in self.earlier if row.status != "FINISHED"]
        for row in sorted(unfinished, key=_number, reverse=True):
            try:
                with self.tracker.translating_errors():
                    checkpoint = _load(self.tracker, row)
            except (StoreError, FileNotFoundError):
                checkpoint = None
            if checkpoint is not None:
                self.count, self.carried_on_from = _number(row), row.run_id
                return checkpoint
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, or skip it if the store cannot be reached. DiskFullError."""
        if self.run_id is None:
            self.skipped += 1
            return
        slot, count = SLOTS[self.written % 2], self.count + 1
        content = save(dict(checkpoint.tensors), {METADATA: json.dumps(dict(checkpoint.metadata))})
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
        """Return the tags of the finished run on its checkpoints."""
        tags = {"carried_on_from": self.carried_on_from} if self.carried_on_from else {}
        return tags | ({"checkpoints_skipped": str(self.skipped)} if self.skipped else {})

    def obsolete_runs(self) -> Iterator[str]:
        """Iterate over the runs whose checkpoints are not needed once the task's result is stored."""
        if self.run_id is not None and self.written:
            yield self.run_id
        yield from (row.run_id for row in self.earlier if row.status != "RUNNING")


def delete_checkpoints(tracker: Tracker, run_ids: Iterable[str]) -> list[str]:
    """Delete the checkpoints of these runs; return those whose store refuses to delete files."""
    return [run_id for run_id in run_ids if not _delete_checkpoint(tracker, run_id)]


def _delete_checkpoint(tracker: Tracker, run_id: str) -> bool:
    try:
        row = tracker.get_run(run_id)
    except StoreUnavailableError:
        raise
    except StoreError:
        return True  # the run was deleted, and its files with it
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


def _load(tracker: Tracker, row: RunRecord) -> Checkpoint | None:
    slot, _, sha256 = _parse_tag(row)
    if slot not in SLOTS:
        return None
    content = tracker.read_bytes(row, _path(slot))
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Checkpoint(load(content), json.loads(header["__metadata__"][METADATA]))


def _number(row: RunRecord) -> int:
    number = _parse_tag(row)[1]
    return int(number) if number.isdecimal() else 0


def _parse_tag(row: RunRecord) -> list[str]:
    """Return slot, number and SHA-256; empty texts for an invalid tag."""
    fields = row.tags[TAG].split(" ")
    return fields if len(fields) == 3 else ["", "", ""]


def _path(slot: str) -> str:
    return f"{FOLDER}/{slot}.safetensors"
