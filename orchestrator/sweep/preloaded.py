"""What a worker of a Ray of our own imports as it starts, before its first trial comes."""

from __future__ import annotations

import gc

from orchestrator.garbage import rarely_collected

with rarely_collected():
    import orchestrator.sweep.task  # noqa: F401
    from orchestrator.sweep.processes import restore_umask
restore_umask()
gc.freeze()  # it stays: nobody needs to look through it again
