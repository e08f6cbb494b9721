"""Modules that a new Ray worker imports before its first task."""

from __future__ import annotations

import gc

from orchestrator.system.memory import infrequent_gc

with infrequent_gc():
    import orchestrator.execution.trainable  # noqa: F401
    from orchestrator.execution.ray_patches import restore_umask
restore_umask()
gc.freeze()  # modules stay: the collector need not look through them again
