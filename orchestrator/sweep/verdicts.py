"""Which trials of a sweep are to stop: told by the scheduler, asked by the workers.

Kept in the table that Ray's head has for its own use: an actor would be one more process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put


@dataclass(frozen=True)
class Verdicts:
    """Reasons by the keys of trials, in a place of their own."""

    place: str = field(default_factory=lambda: f"orchestrate/{uuid4().hex}/")

    def tell(self, key: str, reason: str) -> None:
        """Every worker finds it once this has returned."""
        _internal_kv_put(self.place + key, reason, overwrite=True)

    def of(self, key: str) -> str:
        """Why the trial is to stop; empty where it goes on."""
        found: bytes | None = _internal_kv_get(self.place + key)
        return (found or b"").decode()

    def forget(self) -> None:
        _internal_kv_del(self.place, del_by_prefix=True)
