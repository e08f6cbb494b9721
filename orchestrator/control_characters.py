"""Characters that steer a terminal or hide in a text: shown as escapes, and refused in a space.

They are those of the Unicode categories below: C0 and C1 controls with ESC, DEL and newlines; marks of
direction, zero width and other formats; halves of surrogate pairs; separators of lines and paragraphs.
"""

from __future__ import annotations

import unicodedata

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
    return "".join(shown(sign) if _is_control(sign, allowed) else sign for sign in text)


def shown(sign: str) -> str:
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
