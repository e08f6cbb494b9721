"""Patches of Tune's internals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ray.air.execution._internal import actor_manager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache, tune_controller

from orchestrator.execution.ray_patches import missing_of, patched

WORKER_LOSSES = (RayActorError, NodeDiedError, ObjectLostError, OutOfDiskError, OutOfMemoryError)
INTERNALS: tuple[tuple[Any, tuple[str, ...]], ...] = (  # modules, whose stubs lack these names
    (actor_manager, ("RayActorError",)),
    (tune_controller, ("RayActorError",)),
    (class_cache, ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")),
)


def missing_internals() -> list[str]:
    """Return the dotted names of the internals of Tune that this version of it does not have."""
    return missing_of(INTERNALS)


@contextmanager
def worker_loss_fails_one_trial() -> Iterator[None]:
    """Let a worker that the memory monitor of a cluster kills cost its trial one try.

    Tune 2.60 knows no death but RayActorError, and at any other ends the whole experiment.
    """
    errors = {"RayActorError": WORKER_LOSSES}
    with patched(actor_manager, **errors), patched(tune_controller, **errors):
        yield


def reuse_prestarted_workers() -> AbstractContextManager[None]:
    """Let trials run in the workers that were started ahead.

    Tune gives each an environment of its own, and with one each would be a new process.
    """
    return patched(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set())
