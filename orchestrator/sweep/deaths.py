"""What Tune takes for the death of one trial's worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.air.execution._internal import actor_manager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

from orchestrator.sweep.replaced import replaced

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError)


@contextmanager
def one_trial_each() -> Iterator[None]:
    """A worker that the memory monitor of a cluster kills costs its trial one try.

    Tune 2.60 knows no death but RayActorError, and at any other ends the whole experiment.
    """
    with replaced(actor_manager, RayActorError=DEATHS), replaced(tune_controller, RayActorError=DEATHS):
        yield
