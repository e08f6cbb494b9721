"""Messages for unknown names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MOST_LISTED = 30  # names; a library has a thousand


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: with the nearest names, or else with all if they are few."""
    allowed = list(allowed)
    near = " or ".join(get_close_matches(name, allowed, n=3, cutoff=0.5))
    if near:
        return f"unknown {kind} {name!r:.200}; did you mean {near}?"
    listed = ", ".join(allowed[:MOST_LISTED])
    further = f" and {len(allowed) - MOST_LISTED} more" if len(allowed) > MOST_LISTED else ""
    return f"unknown {kind} {name!r:.200}; " + (f"known: {listed}{further}" if allowed else "it takes none")
