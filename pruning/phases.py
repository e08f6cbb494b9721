"""In which phase a network stands, told from the turning points of its PQ index along pruning rounds.

Diao et al., Pruning Deep Neural Networks from a Sparsity Perspective, ICLR 2023, section 4: the index
of the retrained network falls while pruning regularises, rises when the network begins to underfit,
and falls again when it collapses. A network's index may never turn; nothing is claimed of it then.
"""

from __future__ import annotations

from collections.abc import Sequence

from pruning.registry import Between
from pruning.scalars import real_number, whole_number

NOT_SEEN = "phase not seen"
REGULARISING, UNDERFITTING, COLLAPSING = "regularising", "underfitting", "collapsing"
PAST_COMPRESSIBLE = (UNDERFITTING, COLLAPSING)
DELTA, PATIENCE = 0.01, 2
RANGES = {"delta": Between(0, under=True), "patience": Between(1)}


def check_phases(*, delta: float, patience: int) -> None:
    """ValueError for what `phases` cannot take."""
    size, rounds = real_number(delta), whole_number(patience)
    if size is None or not RANGES["delta"].holds(size):
        raise ValueError(f"delta: expected a number in {RANGES['delta']} but got {delta!r}")
    if rounds is None or not RANGES["patience"].holds(rounds):
        raise ValueError(f"patience: expected a whole number of rounds, 1 or more, but got {patience!r}")


def phases(indices: Sequence[float], *, delta: float = DELTA, patience: int = PATIENCE) -> list[str]:
    """The phase of every round, told from all the indices given, one a round.

    A turning point is an extreme from which the index has moved away by more than `delta` for
    `patience` rounds on end: what is less is noise. Up to the bottom of a fall the network is
    regularised, from there to the top it underfits, and after the top it collapses. Before such a
    bottom is known, and in rounds before the fall that leads to it, the phase is not seen.
    """
    check_phases(delta=delta, patience=patience)
    upside_down = [-value for value in indices]
    found = [NOT_SEEN] * len(indices)
    start, bottom = 0, _turn(indices, 0, delta, patience)
    if bottom is not None and max(indices[: bottom + 1]) - indices[bottom] <= delta:
        # It rises from the first round on: the fall, if there is one, comes after the top.
        start = _turn(upside_down, bottom, delta, patience) or len(indices)
        bottom = _turn(indices, start, delta, patience)
    if bottom is None:
        return found
    top = _turn(upside_down, bottom, delta, patience)
    top = len(indices) - 1 if top is None else top
    found[start : bottom + 1] = [REGULARISING] * (bottom + 1 - start)
    found[bottom + 1 : top + 1] = [UNDERFITTING] * (top - bottom)
    found[top + 1 :] = [COLLAPSING] * (len(indices) - top - 1)
    return found


def _turn(values: Sequence[float], start: int, delta: float, patience: int) -> int | None:
    """Where the values, from `start` on, have their first confirmed minimum; None without one."""
    low, above = start, 0
    for position in range(start + 1, len(values)):
        if values[position] < values[low]:
            low, above = position, 0
        else:
            above = above + 1 if values[position] > values[low] + delta else 0
        if above == patience:
            return low
    return None
