"""Which trials of a sweep are to stop: an actor between the scheduler and the workers.

It stands alone so that its process loads nothing.
"""

from __future__ import annotations


class Verdicts:
    """Reasons by the keys of trials."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def tell(self, key: str, reason: str) -> None:
        self._reasons[key] = reason

    def of(self, key: str) -> str:
        """Why the trial is to stop; empty where it goes on."""
        return self._reasons.get(key, "")
