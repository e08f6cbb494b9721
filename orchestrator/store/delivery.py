"""From the outbox to the store: in an order, and so that a second try goes on where the first broke off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from orchestrator.errors import AwayError, DiskFullError, StoreError
from orchestrator.store.alone import alone
from orchestrator.store.keeping import forget
from orchestrator.store.outbox import Outbox
from orchestrator.store.parcel import Closing, Parcel
from orchestrator.tracking import TAG_LENGTH, OpenRun, Tracker

LOCK, LOCK_SECONDS = ".key.lock", 60.0


@lru_cache(maxsize=8)
def tracker_of(uri: str, experiment: str) -> Tracker:
    """One tracker for all of this process: what it learns of a store that is away, all know."""
    return Tracker(uri, experiment)


def deliver(tracker: Tracker, outbox: Outbox, parcel: Parcel, *, run: OpenRun | None = None) -> None:
    """All of a parcel that this process holds: files before the key, the key before the end.

    `run` is the one that was opened for it just now, if there is one; else it is looked for. AwayError,
    DiskFullError or StoreError leave the parcel where it is.
    """
    with tracker.reaching():
        _write(tracker, parcel, run)
    outbox.remove(parcel)


def deliver_all(
    uri: str, outbox: Outbox, *, on_delivered: Callable[[Parcel], None] | None = None
) -> Mapping[str, str]:
    """Everything that waits and that no other process is delivering; what is refused, and why, by name.

    AwayError and DiskFullError come at the first one that meets them.
    """
    refused: dict[str, str] = {}
    for parcel in outbox.parcels():
        with outbox.held(parcel) as mine:
            if not mine:
                continue
            try:
                deliver(tracker_of(uri, parcel.opening.experiment), outbox, parcel)
            except (AwayError, DiskFullError):
                raise
            except StoreError as error:
                refused[parcel.opening.name] = str(error)
            else:
                if on_delivered is not None:
                    on_delivered(parcel)
    return refused


def _write(tracker: Tracker, parcel: Parcel, run: OpenRun | None) -> None:
    opening, closing = parcel.opening, parcel.closing
    begun = parcel.begun and run is not None
    if run is None:
        row = tracker.of_parcel(parcel.id)
        if row is not None and (row.status, row.end_ms) == (closing.status, closing.end_ms):
            return  # all of it is there, and only the parcel was not removed
        if row is not None and "reason" in row.tags:
            tracker.delete_tag(row.run_id, "reason")  # it was given up, and closed
        run = _begin(tracker, parcel) if row is None else tracker.opened(row)
    if not begun:
        run.log(params=opening.params)
        run.log_data(opening.data.name, opening.data.digest, opening.data.sizes)
    run.log_folder(parcel.files)
    kept = forget(tracker, closing.emptied)
    tags = {**closing.tags, **({"checkpoints_left_in": ", ".join(kept)[:TAG_LENGTH]} if kept else {})}
    with alone(tracker.uri, LOCK, seconds=LOCK_SECONDS, otherwise=AwayError):
        tags |= _key(tracker, run, closing)
        run.log(metrics=closing.metrics, tags=tags, at_ms=closing.end_ms)
        run.end(closing.status, end_ms=closing.end_ms)


def _begin(tracker: Tracker, parcel: Parcel) -> OpenRun:
    opening = parcel.opening
    return tracker.start(
        opening.kind,
        opening.name,
        parent=opening.parent,
        tags={**opening.tags, "parcel": parcel.id},
        start_ms=opening.start_ms,
    )


def _key(tracker: Tracker, run: OpenRun, closing: Closing) -> dict[str, str]:
    """The tag by which a whole run is found; a run whose key another has by now says which one that is."""
    if closing.key is None:
        return {}
    other = tracker.finished_one(closing.key)
    taken = other is not None and other.run_id != run.run_id
    return {"duplicate_of": other.run_id} if other and taken else {"key": closing.key}
