"""Workers of a Ray of our own have imported what trials need before the first comes: Tune takes those."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ray.tune.execution import class_cache

from orchestrator.sweep.replaced import replaced


def taken() -> AbstractContextManager[None]:
    """With an environment of its own for them, as Tune gives them, each would be a new process."""
    return replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=set())
