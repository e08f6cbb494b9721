"""Text for people: sizes, durations and percentages; control characters are escaped."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def first_control(text: str, *, allowed: str = "") -> int | None:
    """Where the first of them stands, save for the allowed ones; None in a text without."""
    if text.isprintable():
        return None
    return next((at for at, sign in enumerate(text) if _is_control(sign, allowed)), None)


def escape_controls(text: str, *, allowed: str = "") -> str:
    r"""The text with `\n`, `\x1b`, `\u202e` in the place of each of them, save for the allowed ones."""
    if text.isprintable():
        return text
    return "".join(escape_character(sign) if _is_control(sign, allowed) else sign for sign in text)


def escape_character(sign: str) -> str:
    """A character as Python's escape for it."""
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def is_encodable(text: str) -> bool:
    """Whether it is text: no bytes that were none of UTF-8 when they came in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_control(sign: str, allowed: str) -> bool:
    return sign not in allowed and unicodedata.category(sign) in CONTROLS


def format_gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def format_percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}%"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_size(count: int) -> str:
    """Bytes for a reader: `12 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
