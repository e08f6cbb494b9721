"""Copies of one's own files that a sweep keeps, and when they may run.

Nothing that a store holds runs by itself. A pinned name that it holds means a code that this process had from
a person, or one that lies below the current folder with equal content, or, where that is trusted, the copy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from pruning.user_code import own_code
from pruning.user_code.own_code import NAME, OwnCode, OwnCodeError
from pruning.user_code.sources import MAX_BYTES

FORMAT = 1
_TRUST: ContextVar[bool] = ContextVar("whether kept copies may run", default=False)


def codes_in(text: str) -> list[OwnCode]:
    """Return the codes of all pinned names in a text, such as a configuration as JSON."""
    names = dict.fromkeys(match[0] for match in NAME.finditer(text) if match[2])
    return list({own_code.split(name).pin: own_code.code_of(name) for name in names}.values())


def dump(codes: Iterable[OwnCode], *, with_base: bool = False) -> str:
    """Return JSON from which `parse_kept` makes the same code; `with_base` adds the folders."""
    content = {code.pin: code.content(with_base=with_base) for code in codes}
    return json.dumps({"format": FORMAT, "code": dict(sorted(content.items()))}, indent=1, sort_keys=True)


@lru_cache(maxsize=4)  # a worker gets one text with every task
def _parse(text: str) -> dict[str, OwnCode]:
    return parse_kept(text)


def parse_kept(text: str) -> dict[str, OwnCode]:
    """Return pin -> code of what `dump` wrote; nothing of it runs. OwnCodeError for anything else."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.20}")
        codes = [_kept_code(item) for item in content["code"].values()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OwnCodeError(f"the kept code cannot be read: {' '.join(str(error).split())[:200]}") from error
    return {code.pin: code for code in codes}


def _kept_code(item: Mapping[str, Any]) -> OwnCode:
    files: dict[str, str] = item["files"]
    for name, text in {item["main"]: "", **files}.items():
        parts = name.split("/")
        if not isinstance(text, str) or not name.endswith(".py") or {"", ".", ".."} & set(parts):
            raise ValueError(f"{name!r:.80} is no source file below the folder")
    if item["main"] not in files or sum(map(len, files.values())) > MAX_BYTES:
        raise ValueError("its files are not whole, or too large")
    return OwnCode(item["main"], files, Path(item["base"]) if "base" in item else None, str(item["below"]))


def add_all(kept: str) -> None:
    """Let this process run what `dump` wrote in another process of the same sweep; "" for nothing."""
    for code in _parse(kept).values() if kept else ():
        own_code.add(code)


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Within the block, and with `trust`, copies that a store keeps may run."""
    token = _TRUST.set(trust or _TRUST.get())
    try:
        yield
    finally:
        _TRUST.reset(token)


def accept_kept(name: str, read_kept: Callable[[], str]) -> None:
    """Let this process run the code of a pinned name that a store names, or raise OwnCodeError.

    It may run where this process had it from a person, where its files lie below the current folder with
    equal content, or, with `trusting`, as the copy that the store keeps.
    """
    parts = own_code.split(name)
    if not parts.pin:
        raise OwnCodeError(f"{name} is recorded without the digest of its file, and is not read")
    if own_code.is_known(name):
        return
    copy = parse_kept(text).get(parts.pin) if (text := read_kept()) else None
    if copy is None:
        raise OwnCodeError(f"{own_code.shown(name)}: no copy of its file with the digest {parts.pin} is kept")
    folder = Path.cwd()
    problems = [_difference(copy, base, folder) for base in dict.fromkeys((folder / copy.below, folder))]
    if "" in problems:
        base = (folder / copy.below, folder)[problems.index("")]
        own_code.add(OwnCode(copy.main, copy.sources, base, copy.below))
    elif _TRUST.get():
        own_code.add(OwnCode(copy.main, copy.sources, None, copy.below))
    else:
        raise OwnCodeError(
            f"{own_code.shown(name)} needs its file with the digest {parts.pin}, and {problems[0]}; go to "
            "the folder that has it, or run the copy that is kept with the run: --trust-code, in Python "
            "trust_code=True"
        )


def _difference(code: OwnCode, base: Path, folder: Path) -> str:
    """Return how a kept code differs from the files below a folder; "" for equal content.

    A file that a link takes out of the current folder does not count.
    """
    for name, text in {code.main: code.sources[code.main], **code.sources}.items():
        file = base / name
        try:
            if not file.resolve().is_relative_to(folder.resolve()):
                return f"{name} is not below this folder"
            if file.read_bytes() != text.encode():
                return f"{os.path.relpath(file, folder)} is not as it was"
        except (OSError, ValueError):
            return f"there is no {name} in this folder"
    return ""
