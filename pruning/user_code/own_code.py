"""Functions of one's own files, by `path/to/file.py:function`.

A file's name is pinned when it is read: `net.py@0123456789abcdef:small` has the first digits of the SHA-256
of the file and of the files beside it that it imports, so that one text means one code in every process. A
name without a pin is a person's, and reads a file; a name in a store has one, and means a code that this
process was handed: see `stored_code`. This module needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from pruning.user_code.imports import World, is_own_module
from pruning.user_code.sources import Layout, OwnCodeError, SourceFiles, reached

__all__ = ["OwnCode", "OwnCodeError", "is_own", "is_own_module", "pinned", "relative_to", "shown"]

PIN_LENGTH = 16
NAME = re.compile(r"([\w.+~/-]+\.py)(?:@([0-9a-f]{16}))?:([^\W\d]\w*)")
NAME_PATTERN = r"[\w.+~/-]+\.py(?:@[0-9a-f]{16})?:[^\W\d]\w*"  # the same without groups
NAME_AT_START = re.compile(NAME_PATTERN)
PIN = re.compile(r"(?<=\.py)@[0-9a-f]{16}(?=:)")

Function = Callable[..., Any]


@dataclass(frozen=True)
class OwnName:
    """The parts of `path.py@pin:function`; `pin` is "" where the name has none."""

    path: str
    pin: str
    function: str

    def __str__(self) -> str:
        return f"{self.path}{'@' if self.pin else ''}{self.pin}:{self.function}"


@dataclass(frozen=True, eq=False)
class OwnCode:
    """A file of one's own with the sources that it reaches, by their paths relative to `base`.

    `base` is None for a copy whose files are not at hand. `below` is the path of the base from the folder in
    which the sweep was started, if it lies below that.
    """

    main: str
    sources: Mapping[str, str]
    base: Path | None = None
    below: str = ""
    world: World | None = None

    @cached_property
    def sha256(self) -> str:
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.sources.items()}
        return hashlib.sha256(json.dumps([self.main, hashes], sort_keys=True).encode()).hexdigest()

    @property
    def pin(self) -> str:
        return self.sha256[:PIN_LENGTH]

    @cached_property
    def module(self) -> ModuleType:
        """The imported file. OwnCodeError where it cannot be imported."""
        world = self.world or World(Layout(SourceFiles(self.base, dict(self.sources)), self.main))
        world.seal()
        return world.load_main()

    @cached_property
    def libraries(self) -> tuple[str, ...]:
        """The packages that it imports whose versions decide what a network is."""
        pattern = re.compile(r"^\s*(?:import|from)\s+(torchvision|timm)\b", re.MULTILINE)
        return tuple(sorted({name for text in self.sources.values() for name in pattern.findall(text)}))

    def content(self, *, with_base: bool) -> dict[str, Any]:  # JSON
        """Return what has to be kept to run the code elsewhere; `with_base` for a process of this sweep."""
        base = {"base": str(self.base)} if with_base and self.base is not None else {}
        return {"main": self.main, "files": dict(self.sources), "below": self.below, **base}


_CODES: dict[str, OwnCode] = {}  # by pin: all code that this process may run
_FOLDER: ContextVar[Path | None] = ContextVar("folder of own code", default=None)
_RELATIVE: ContextVar[dict[str, str] | None] = ContextVar("pins of a space", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """Within the block, names without a pin are relative to a folder, and not to the current one."""
    tokens = _FOLDER.set(folder), _RELATIVE.set({})
    try:
        yield
    finally:
        _FOLDER.reset(tokens[0])
        _RELATIVE.reset(tokens[1])


def base_folder() -> Path:
    """Return the folder that relative paths start from: that of `relative_to`, or the current one."""
    return Path(os.path.abspath(_FOLDER.get() or Path.cwd()))


def is_own(name: str) -> bool:
    """Whether a method's or model's name, without options, is that of one's own file."""
    return NAME.fullmatch(name) is not None


def split(name: str) -> OwnName:
    """Return the parts of a name. ValueError for a name of another form."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r:.200} names no file's function; write path/to/file.py:function")
    return OwnName(match[1], match[2] or "", match[3])


def shown(text: str) -> str:
    """Return a text as people read it: without pins."""
    return PIN.sub("", text)


def pinned(name: str) -> str:
    """Return a name with its pin; a file without one is read. OwnCodeError where that is not possible."""
    parts = split(name)
    if parts.pin:
        return str(parts)
    path, code = _read(parts.path)
    _check_unique(path, code)
    return str(OwnName(path, code.pin, parts.function))


def code_of(name: str) -> OwnCode:
    """Return the code of a name. OwnCodeError for a pin whose code this process does not have."""
    pin = split(pinned(name)).pin
    if pin not in _CODES:
        raise OwnCodeError(
            f"{shown(name)}: the code with the digest {pin} is not at hand; it comes with a space file, or "
            "from the folder that has it"
        )
    return _CODES[pin]


def find_function(name: str) -> Function:
    """Return the function or class of a name. OwnCodeError, with near names, where the file has none."""
    parts, module = split(name), code_of(name).module
    value = getattr(module, parts.function, None)
    if callable(value):
        result: Function = value
        return result
    own = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
    own = [key for key in own if getattr(vars(module)[key], "__module__", "") == module.__name__] or own
    near = get_close_matches(parts.function, own, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(own[:20]) or 'none'}"
    raise OwnCodeError(f"{parts.path} has no function {parts.function!r}; {hint}")


def add(code: OwnCode) -> None:
    """Let this process run a code: the act of who calls this, and never of who wrote the code."""
    _CODES.setdefault(code.pin, code)


def is_known(name: str) -> bool:
    """Whether this process has the code of a pinned name."""
    return split(name).pin in _CODES


def _read(written: str) -> tuple[str, OwnCode]:
    """Return the path as it is recorded and the code of a file, relative to the folder of the space."""
    folder = base_folder()
    file = Path(os.path.normpath(folder / os.path.expanduser(written)))
    if not file.is_file():
        raise OwnCodeError(_no_file(file, written, folder))
    if written.startswith(("/", "~")):
        base = file.parent
        while (base / "__init__.py").is_file() and base != base.parent:
            base = base.parent
        path = file.relative_to(base).as_posix()
    else:
        path = Path(os.path.relpath(file, folder)).as_posix()
        up = len([part for part in Path(path).parts if part == ".."])
        base = Path(os.path.normpath(folder.joinpath(*[".."] * up)))
    return path, _code_at(base, file.relative_to(base).as_posix())


def _code_at(base: Path, main: str) -> OwnCode:
    files = SourceFiles(base, {})
    layout = Layout(files, main)
    reached(layout)
    first = OwnCode(main, dict(files.sources), base)
    for known in _CODES.values():
        # What it imports by computed names was read with it, and has to be as it was.
        further = known.sources.keys() - first.sources.keys()
        same = known.base == base and known.main == main and first.sources.items() <= known.sources.items()
        if same and all(files.peek(name) == known.sources[name] for name in further):
            return known
    world = World(layout)
    world.load_main()
    world.seal()
    code = OwnCode(main, dict(files.sources), base, _below(base), world)
    add(code)
    return _CODES[code.pin]


def _below(base: Path) -> str:
    path = Path(os.path.relpath(base)).as_posix()
    return "" if path == "." or path.startswith("..") else path


def _check_unique(path: str, code: OwnCode) -> None:
    """Two files of a space have to differ in the name that tables show."""
    known = _RELATIVE.get()
    if known is not None and known.setdefault(path, code.pin) != code.pin:
        raise OwnCodeError(
            f"two files are called {path} in this space; write both relative to the space file"
        )


def _no_file(file: Path, written: str, folder: Path) -> str:
    if file.exists():
        return f"{written} is no plain file"
    try:
        beside = sorted(path.stem for path in file.parent.iterdir() if path.suffix == ".py")
    except OSError:
        return f"there is no folder {os.path.relpath(file.parent, folder)} for {written}"
    near = [f"{stem}.py" for stem in get_close_matches(file.stem, beside, n=3, cutoff=0.6)]
    where = "beside the space file" if _FOLDER.get() else "in this folder"
    hint = f"did you mean {' or '.join(near)}?" if near else f"paths are relative, {where}: {folder}"
    return f"there is no file {written}; {hint}"
