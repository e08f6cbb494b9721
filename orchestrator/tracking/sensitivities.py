"""Store sensitivities with the runs of their dense networks: a file for each question, and a tag.

The file is written before the tag, and what is written twice is the same: workers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage.runs import RunRecord
from orchestrator.tracking.client import Tracker
from orchestrator.trial.sensitivity import Question, Sensitivity, read_sensitivity

TAG = "sensitivity."  # and the question's digest: the criterion and what it removes


def _path(digest: str) -> str:
    return f"sensitivity/{digest}.json"


class StoredSensitivities:
    """The sensitivities of the dense networks of one store."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def sensitivity(self, question: Question) -> Sensitivity | None:
        """Return the stored answer; None where there is none. StoreUnavailableError if it is away."""
        row = self._tracker.find_finished(question.dense_key)
        if row is None or TAG + question.digest not in row.tags:
            return None
        stored = _read(self._tracker, row, question.digest)
        return stored if stored is not None and stored.question == question else None

    def add_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Store an answer with its dense network, where the store has that.

        StoreError if it cannot be written.
        """
        question = sensitivity.question
        row = self._tracker.find_finished(question.dense_key)
        if row is None:
            return
        self._tracker.replace_text(row, _path(question.digest), sensitivity.to_text())
        label = f"{question.criterion}, {question.granularity}"
        self._tracker.set_tag(row.run_id, TAG + question.digest, label)


def iter_sensitivities(tracker: Tracker, row: RunRecord) -> Iterator[Sensitivity]:
    """Yield what is stored with a dense run, by the names of its tags; what cannot be read is left out."""
    for tag in sorted(row.tags):
        if tag.startswith(TAG) and (stored := _read(tracker, row, tag.removeprefix(TAG))) is not None:
            yield stored


def _read(tracker: Tracker, row: RunRecord, digest: str) -> Sensitivity | None:
    """Return a stored table; None where the file is gone or not as it was written."""
    try:
        return read_sensitivity(tracker.read_text(row, _path(digest)))
    except StoreUnavailableError:
        raise
    except (StoreError, ValueError):
        return None
