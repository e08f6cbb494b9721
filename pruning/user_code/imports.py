"""Imports of one's own files: under private names, each file's imports among the files beside it first.

`import models` in a file of one's own gives the folder `models/` beside it, and in this project the package
of that name. Python decides by `__import__` in a module's builtins, so the modules of one's own code have
builtins of their own; this also holds for an import that a function runs later on.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import count
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from pruning.user_code.sources import Layout, Location, OwnCodeError, is_in_interpreter

PREFIX = "_own_code_"
REASON_LENGTH = 300  # characters of another's error
_numbers = count(1)
_worlds: dict[str, World] = {}
# Package -> a module of ours to import before it.
IMPORT_FIRST: dict[str, str] = {}


def is_own_module(name: str | None) -> bool:
    """Whether a module's name is that of one's own code."""
    return str(name or "").startswith(PREFIX)


def reason(error: BaseException) -> str:
    """Return an error of one's own code in one line, with the file and line where it happened."""
    lines = [_place(error)] if isinstance(error, SyntaxError) else list(_places(error.__traceback__))
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    words = " ".join(f"{type(error).__name__}: {text}".split()) if text else type(error).__name__
    for prefix in _worlds:
        words = words.replace(f"{prefix}.", "")
    words = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    return f"{words[:REASON_LENGTH]}{f' ({lines[-1]})' if lines and lines[-1] else ''}"


def _place(error: SyntaxError) -> str:
    return f"{Path(error.filename or '').name}, line {error.lineno}" if error.lineno else ""


def _places(traceback: TracebackType | None) -> Sequence[str]:
    places = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_own_module(traceback.tb_frame.f_globals.get("__name__")):
            places.append(f"{Path(code.co_filename).name}, line {traceback.tb_lineno}")
        traceback = traceback.tb_next
    return places


class World:
    """The modules of one file of one's own and of what it imports beside it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.name = layout, f"{PREFIX}{next(_numbers)}"
        self.builtins = {**vars(builtins), "__import__": self.import_module}
        self.importlib = _copy_of_importlib(self.import_by_name)
        _worlds[self.name] = self
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)

    def seal(self) -> None:
        """Let no further file in: the digest covers those that were read."""
        self.layout.files.is_sealed = True
        self.layout.forget_missing()

    def load_main(self) -> ModuleType:
        """Import the main file. OwnCodeError, with the line, for whatever it raises."""
        parent = ModuleType(self.name, "The parent of modules of one's own.")
        parent.__path__ = []
        sys.modules.setdefault(self.name, parent)
        try:
            with redirect_stdout(sys.stderr):  # our stdout is for results
                return importlib.import_module(f"{self.name}.{self.layout.main_module}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever another's code may raise, SystemExit too
            for name in [name for name in sys.modules if name.startswith(f"{self.name}.")]:
                del sys.modules[name]
            if isinstance(error, OwnCodeError):
                raise
            raise OwnCodeError(f"{self.layout.main} cannot be imported: {reason(error)}") from error

    def is_own(self, name: str) -> bool:
        """Whether a top-level name is one's own. OwnCodeError for a file that the digest misses."""
        if self.layout.find(name) is not None:
            return True
        files = self.layout.files
        if files.is_sealed and files.base is not None:
            self._check_not_missed(name)
        return False

    def _check_not_missed(self, name: str) -> None:
        files = self.layout.files
        for root in self.layout.roots:
            stem = f"{root}/{name}" if root else name
            for file in (f"{stem}/__init__.py", f"{stem}.py"):
                if files.on_disk(file) and not is_in_interpreter(name):
                    raise OwnCodeError(
                        f"{self.layout.main} imports {file} by a computed name, which its digest misses; "
                        "import it at the top of the file"
                    )

    def import_module(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as `builtins.__import__` does, one's own files first."""
        top = name.partition(".")[0]
        if level == 0 and self.is_own(top):
            private = f"{self.name}.{name}"
            if fromlist:
                return builtins.__import__(private, globals, locals, fromlist, 0)
            importlib.import_module(private)
            return sys.modules[f"{self.name}.{top}"]
        if level == 0 and top in IMPORT_FIRST:
            importlib.import_module(IMPORT_FIRST[top])
        module = builtins.__import__(name, globals, locals, fromlist or (), level)
        return self.importlib if level == 0 and name == "importlib" else module

    def import_by_name(self, name: str, package: str | None = None) -> ModuleType:
        """Import as `importlib.import_module` does, one's own files first."""
        if not name.startswith("."):
            self.import_module(name)
            private = f"{self.name}.{name}"
            return sys.modules[private if private in sys.modules else name]
        return importlib.import_module(name, package)


def _copy_of_importlib(import_by_name: Callable[..., ModuleType]) -> ModuleType:
    """Return importlib with another `import_module`; its submodules are those of the original."""
    copy = ModuleType("importlib", importlib.__doc__)
    vars(copy).update(vars(importlib))
    vars(copy)["import_module"] = import_by_name
    copy.__getattr__ = lambda name: getattr(importlib, name)  # type: ignore[method-assign]  # late submodules
    return copy


class _Finder(MetaPathFinder):
    """Finds the private modules of all worlds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        prefix, _, module = fullname.partition(".")
        world = _worlds.get(prefix)
        location = world.layout.find(module) if world is not None and module else None
        if world is None or location is None:
            return None
        files = world.layout.files
        origin = files.path(location.file) if location.file else None
        spec = ModuleSpec(fullname, _SourceLoader(world, location), origin=origin)
        spec.has_location = origin is not None
        if location.folders:
            spec.submodule_search_locations = [files.path(folder) for folder in location.folders]
        return spec


class _SourceLoader(Loader):
    """Runs the text of a file that was read before, with the builtins of its world."""

    def __init__(self, world: World, location: Location) -> None:
        self.world, self.location = world, location

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self.world.builtins
        if not self.location.file:
            return
        files = self.world.layout.files
        text, path = files.read(self.location.file), files.path(self.location.file)
        if files.base is None:  # for tracebacks and inspect.getsource
            linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        exec(compile(text, path, "exec", dont_inherit=True), vars(module))  # the person's own act

    def get_source(self, fullname: str) -> str:
        return self.world.layout.files.read(self.location.file) if self.location.file else ""


_FINDER = _Finder()
