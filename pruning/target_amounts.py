"""Targets: how much of a network may be left, in place of a fraction of it that goes.

`{macs: 50%, bytes: 100kB}` asks for as little pruning as leaves at most half of the multiply-adds and
100,000 bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches

from pruning.masking import Masks
from pruning.registry import Method
from pruning.schedules import rounds_of

QUANTITIES = ("macs", "parameters", "bytes")
PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
UNITS = {"macs": "MACs?", "parameters": "", "bytes": "B"}
NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
EXAMPLE = "{macs: 50%}, {parameters: 100_000} or {bytes: 100kB}"
SMALLEST_STEP = 1e-9  # of an amount, below which no further unit is looked for

Limit = int | float  # a count, or a fraction of the dense network's


def is_target(amount: object) -> bool:
    """Return whether an amount as a space file has it, or its text, says what may be left."""
    if isinstance(amount, str):
        return any(amount.startswith(f"{{{name}: ") for name in QUANTITIES)
    return isinstance(amount, Mapping) and bool(amount) and amount.keys() <= set(QUANTITIES)


def quantity_hint(names: Iterable[object]) -> str:
    """Return what to add to the error of amounts by layer whose names may be meant as quantities."""
    for name in names:
        near = get_close_matches(str(name).lower(), QUANTITIES, n=1, cutoff=0.7)
        if near and name not in QUANTITIES:
            return f"; or is the quantity {near[0]} meant?"
    return ""


def canonical_target(limits: Mapping[str, object]) -> str:
    """Return the canonical text of limits by quantity. ValueError for one that is no limit."""
    texts = {name: _canonical_limit(name, limits[name]) for name in QUANTITIES if name in limits}
    return f"{{{', '.join(f'{name}: {text}' for name, text in texts.items())}}}"


def _canonical_limit(name: str, value: object) -> str:
    error = (
        f"{name}: {value!r:.80} is no limit; give a percentage of the dense network's or a count: {EXAMPLE}"
    )
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(error)
    text = repr(value) if isinstance(value, (int, float)) else value.strip().replace("_", "").replace(",", "")
    if isinstance(value, float) and 0 < value < 1:
        text = f"{100 * Decimal(repr(value))}%"
    if match := re.fullmatch(rf"{NUMBER}\s*%", text):
        percent = Decimal(match[1])
        if not 0 < percent <= 100:
            raise ValueError(f"{name}: {value!r:.80}; a percentage is above 0 and at most 100%")
        return f"{percent.normalize():f}%"
    match = re.fullmatch(rf"{NUMBER}\s*([kKMG]i?)?\s*(?:{UNITS[name]})?", text)
    if match is None:
        raise ValueError(error)
    count = Decimal(match[1]) * PREFIXES[match[2] or ""]
    if count < 1:
        raise ValueError(error)
    return str(int(count))


def read_target(text: str) -> dict[str, Limit]:
    """Return the limits of a text by `canonical_target`: fractions and counts."""
    entries = (entry.split(": ") for entry in text[1:-1].split(", "))
    return {
        name: float(Decimal(value[:-1]) / 100) if value.endswith("%") else int(value)
        for name, value in entries
    }


def count_limits(limits: Mapping[str, Limit], dense: Mapping[str, int]) -> dict[str, int]:
    """Return limits as counts; `dense` are those of the dense network. Fractions round down."""
    return {
        name: math.floor(Decimal(repr(limit)) * dense[name]) if isinstance(limit, float) else limit
        for name, limit in limits.items()
    }


def check_target_fits(granularity: Method, schedule: Method) -> None:
    """Raise ValueError for a target where the methods decide how much goes."""
    if granularity.name == "nm":
        raise ValueError(f"granularity {granularity.label!r} has a fixed part: no target")
    if schedule.traits.get("adaptive"):
        raise ValueError(
            f"schedule {schedule.label!r} decides itself how much goes: it has no target; choose one_shot, "
            "iterative or cubic"
        )
    if rounds_of(schedule) > 1 and not schedule.traits.get("lands"):
        raise ValueError(
            f"schedule {schedule.label!r} does not say that it reaches its amount in its last round: it has "
            "no target"
        )


def find_amount(
    masks_at: Callable[[float], Masks],
    is_met: Callable[[Masks], bool],
    *,
    most: float,
    count_removed: Callable[[Masks], int],
) -> tuple[float, Masks]:
    """Return the smallest amount up to `most` at which a target is met, to a unit, and its masks.

    The masks of a larger amount are to have removed what those of a smaller one have. ValueError where the
    target is not met by the largest.
    """
    low, high = 0.0, most
    low_masks, high_masks = masks_at(low), masks_at(high)
    if is_met(low_masks):
        return low, low_masks
    if not is_met(high_masks):
        raise ValueError("no amount meets the target")
    between = count_removed(high_masks) - count_removed(low_masks)
    while between > 1 and high - low > SMALLEST_STEP:
        middle = (low + high) / 2
        masks = masks_at(middle)
        if is_met(masks):
            high, high_masks = middle, masks
        else:
            low, low_masks = middle, masks
        between = count_removed(high_masks) - count_removed(low_masks)
    return high, high_masks
