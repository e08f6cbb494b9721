"""What builders of models share: checks of options and names, whether weights are loaded, and initial ones.

Trained weights are not loaded on `meta`, and not where any weights will do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from math import isfinite

import torch
from torch import nn

LARGEST = 10**9  # beyond it torch's own errors speak of overflow and not of widths
MOST_LISTED = 30  # names; a library has a thousand
_IS_WANTED = ContextVar("trained weights are wanted", default=True)


def check_integer(name: str, value: object) -> int:
    """Return an option that is an integer from 1 up. ValueError for anything else."""
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"{name} is {value!r:.80}; give a positive integer")
    return value


def check_positive(name: str, value: object) -> float:
    """Return an option that is a number above 0. ValueError for anything else."""
    if type(value) not in (int, float) or not isfinite(value) or not 0 < value <= LARGEST:  # type: ignore[arg-type,operator]
        raise ValueError(f"{name} is {value!r:.80}; give a number above 0")
    return float(value)  # type: ignore[arg-type]


def check_member(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError for an option that is none of a few values."""
    if not any(type(value) is type(member) and value == member for member in allowed):  # 11.0 equals 11
        *first, last = map(str, allowed)
        raise ValueError(f"{name} is {value!r:.80}; give {', '.join(first)} or {last}")


def draw_convolutions(net: nn.Module) -> None:
    """Draw the filters of all convolutions from He et al.'s normal distribution (2015, eq. 14; fan out)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: with the nearest names, or else with all if they are few."""
    allowed = list(allowed)
    near = " or ".join(get_close_matches(name, allowed, n=3, cutoff=0.5))
    if near:
        return f"unknown {kind} {name!r:.200}; did you mean {near}?"
    listed = ", ".join(allowed[:MOST_LISTED])
    further = f" and {len(allowed) - MOST_LISTED} more" if len(allowed) > MOST_LISTED else ""
    return f"unknown {kind} {name!r:.200}; " + (f"known: {listed}{further}" if allowed else "it takes none")


@contextmanager
def random_weights() -> Iterator[None]:
    """Within the block networks have random weights also where their text names trained ones."""
    token = _IS_WANTED.set(False)
    try:
        yield
    finally:
        _IS_WANTED.reset(token)


def loads_weights() -> bool:
    """Return whether a builder loads the trained weights that its options name."""
    return _IS_WANTED.get() and torch.empty(0).device.type != "meta"
