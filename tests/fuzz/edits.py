"""Edits of bytes and text that keep most of what is edited, so that parsers get past the first line."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

INTERESTING = [
    b"",
    b"\0",
    b"\n",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc2\x9b",
    b"\x1b]0;x\x07",
    b"\xe2\x80\xae",
    b"\\ud800",
]
INTERESTING += [
    b"[" * 300,
    b"{" * 300,
    b"-" * 300,
    b"9" * 5000,
    b"1e999",
    b"0x" + b"f" * 4000,
    b"1:" * 300 + b"1",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    63,
    64,
    255,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
WORDS = [
    "",
    "\x1b[31m",
    "a\nb",
    "\u202e",
    "\ud800",
    "\x00",
    "é",
    "__metadata__",
    "x" * 3000,
    "../x",
    "{",
    "'",
]


@st.composite
def edited(draw: st.DrawFn, contents: list[bytes], most: int = 4) -> bytes:
    """One of the contents with a few slices cut, doubled, overwritten or replaced."""
    data = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 4, 8, 30, 300])))
        kind = draw(st.sampled_from(["cut", "double", "random", "word", "number", "bit"]))
        middle = data[start:end]
        if kind == "cut":
            middle = b""
        elif kind == "double":
            middle = middle * draw(st.sampled_from([2, 3, 100]))
        elif kind == "random":
            middle = draw(st.binary(max_size=8))
        elif kind == "word":
            middle = draw(st.sampled_from(INTERESTING))
        elif kind == "number":
            form, number = draw(st.sampled_from(["<H", "<I", "<Q"])), draw(st.sampled_from(NUMBERS))
            middle = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
        elif middle:
            middle = bytes([middle[0] ^ 1 << draw(st.integers(0, 7))]) + middle[1:]
        data = data[:start] + middle + data[end:]
    return data


def scalars() -> st.SearchStrategy[Any]:  # JSON
    return st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.integers(-3, 300),
        st.floats(),
        st.sampled_from(WORDS),
        st.text(max_size=8),
    )


def values(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """JSON of any kind, nested a little."""
    return st.recursive(
        leaves or scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def changed(draw: st.DrawFn, content: Any, leaves: st.SearchStrategy[Any] | None = None) -> Any:
    """JSON in which a few values, somewhere, are others, are missing, or have company."""
    found = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(0, 3))):
        holder, key = found, None
        while isinstance(holder, (dict, list)) and holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
            if not isinstance(holder[key], (dict, list)) or not holder[key] or draw(st.booleans()):
                break
            holder = holder[key]
        if key is None:
            continue
        kind = draw(st.sampled_from(["value", "value", "gone", "more", "neighbour"]))
        if kind == "gone":
            del holder[key]
        elif kind == "value":
            holder[key] = draw(values(leaves))
        elif isinstance(holder, dict):
            new = draw(st.sampled_from(WORDS) | st.text(max_size=6))
            holder[new] = holder[key] if kind == "neighbour" else draw(values(leaves))
        else:
            holder.append(holder[key] if kind == "neighbour" else draw(values(leaves)))
    return found
