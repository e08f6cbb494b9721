"""What Tune takes for the death of one trial's worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.air.execution._internal import actor_manager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError)


@contextmanager
def one_trial_each() -> Iterator[None]:
    """A worker that the memory monitor of a cluster kills costs its trial one try.

    Tune 2.60 knows no death but RayActorError, and at any other ends the whole experiment.
    """
    places = [vars(actor_manager), vars(tune_controller)]
    before = [place["RayActorError"] for place in places]
    for place in places:
        place["RayActorError"] = DEATHS
    try:
        yield
    finally:
        for place, known in zip(places, before, strict=True):
            place["RayActorError"] = known
