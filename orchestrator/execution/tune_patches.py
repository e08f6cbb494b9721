"""Patches of Tune's internals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ray.air.execution._internal import actor_manager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache, tune_controller

from orchestrator.execution.ray_patches import patched

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError)


@contextmanager
def worker_loss_fails_one_trial() -> Iterator[None]:
    """A worker that the memory monitor of a cluster kills costs its trial one try.

    Tune 2.60 knows no death but RayActorError, and at any other ends the whole experiment.
    """
    with patched(actor_manager, RayActorError=DEATHS), patched(tune_controller, RayActorError=DEATHS):
        yield


def reuse_prestarted_workers() -> AbstractContextManager[None]:
    """With an environment of its own for them, as Tune gives them, each would be a new process."""
    return patched(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set())
