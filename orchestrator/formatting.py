"""Format text for people: sizes, durations, percentages, escaped control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

CONTROL_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # of Unicode: a terminal may obey them


def first_control(text: str, *, allowed: str = "") -> int | None:
    """Return the index of the first control character that is not allowed; None without any."""
    if text.isprintable():
        return None
    return next((i for i, character in enumerate(text) if _is_control(character, allowed)), None)


def escape_controls(text: str, *, allowed: str = "") -> str:
    r"""Return the text with control characters escaped as `\n`, `\x1b`, `\u202e`, save for allowed ones."""
    if text.isprintable():
        return text
    return "".join(escape_character(c) if _is_control(c, allowed) else c for c in text)


def escape_character(character: str) -> str:
    """Return Python's escape for a character."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def is_encodable(text: str) -> bool:
    """Whether text can be written as UTF-8; it cannot where undecodable bytes were read into it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_control(character: str, allowed: str) -> bool:
    return character not in allowed and unicodedata.category(character) in CONTROL_CATEGORIES


def format_number(value: float) -> str:
    """Format a number of any size: `0.9556`, `134,975`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_gigabytes(count: int) -> str:
    """Return bytes as `1.5 GB`."""
    return f"{count / 1e9:.1f} GB"


def format_percent(fraction: float) -> str:
    """Return a fraction as `12.5%`."""
    return f"{100 * fraction:.4g}%"


def format_duration(seconds: float) -> str:
    """Return seconds as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_size(count: int) -> str:
    """Return bytes in their largest unit: `12 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def joined(texts: Iterable[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    items = list(texts)
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))
