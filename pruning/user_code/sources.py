"""The files that a file of one's own reaches: where its imports lie, and what it imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from importlib.util import find_spec
from pathlib import Path

MAX_BYTES = 1_000_000  # of all sources together: they travel to every worker and into every record
OUR_ROOT = Path(__file__).parents[2]
OURS = ("models", "pruning", "orchestrator")


class OwnCodeError(ValueError):
    """A file of one's own that cannot be read, imported or called; one line."""


class SourceFiles:
    """The texts of source files by their paths below `base`, each read once.

    Sealed, or without a `base`, there are no others than those that were read.
    """

    def __init__(self, base: Path | None, sources: dict[str, str]) -> None:
        self.base, self.sources = base, sources
        self.is_sealed = base is None

    def has(self, name: str) -> bool:
        return name in self.sources or (not self.is_sealed and self.on_disk(name))

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name, with sources where it is sealed."""
        if self.is_sealed or self.base is None:
            return any(source.startswith(f"{name}/") for source in self.sources)
        return (self.base / name).is_dir()

    def on_disk(self, name: str) -> bool:
        return self.base is not None and (self.base / name).is_file()

    def path(self, name: str) -> str:
        """Return the path of a file or folder for `__file__` and tracebacks."""
        return f"<kept code>/{name}" if self.base is None else str(self.base / name)

    def peek(self, name: str) -> str | None:
        """Return the text of a file as it is on disk now; None where it cannot be read."""
        try:
            return None if self.base is None else (self.base / name).read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            return None

    def read(self, name: str) -> str:
        """Return the text of a file. OwnCodeError for no UTF-8, and where all sources are too large."""
        if name in self.sources:
            return self.sources[name]
        if self.base is None:
            raise OwnCodeError(f"{name} is not among the kept files")
        try:
            content = (self.base / name).read_bytes()
            text = content.decode()
        except UnicodeDecodeError as error:
            raise OwnCodeError(f"{name}: byte {error.start} is no UTF-8; save the file as UTF-8") from error
        except OSError as error:
            raise OwnCodeError(f"{name} cannot be read: {error.strerror}") from error
        if len(content) + sum(map(len, self.sources.values())) > MAX_BYTES:
            raise OwnCodeError(f"{name}: with it the sources have more than {MAX_BYTES:,} bytes; import less")
        self.sources[name] = text
        return text


@dataclass(frozen=True)
class Location:
    """Where a module lies: its file, or "" for a folder without `__init__.py`; and the folders below it."""

    file: str
    folders: tuple[str, ...] = ()


class Layout:
    """Dotted module names -> files, for a file of one's own and what lies beside it.

    Names are looked up in the folder of the main file first, then in the base folder.
    """

    def __init__(self, files: SourceFiles, main: str) -> None:
        self.files, self.main = files, main
        *folders, name = Path(main).with_suffix("").parts
        self.roots = tuple(dict.fromkeys(("/".join(folders), "")))
        self._known: dict[str, Location | None] = {}
        if not all(part.isidentifier() for part in (*folders, name)):
            folders, name = [], name.replace(".", "_")
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            file = f"{folder}/__init__.py"
            self._known[".".join(folders[:depth])] = Location(file if files.has(file) else "", (folder,))
        self.main_module = ".".join((*folders, name))
        self._known[self.main_module] = Location(main)

    def find(self, module: str) -> Location | None:
        """Return where a module lies; None where it is not one's own."""
        if module not in self._known:
            self._known[module] = self._search(module)
        return self._known[module]

    def forget_missing(self) -> None:
        """Forget which names were not found: other rules may hold now."""
        self._known = {name: location for name, location in self._known.items() if location is not None}

    def _search(self, module: str) -> Location | None:
        parent, _, name = module.rpartition(".")
        location = self.find(parent) if parent else Location("", self.roots)
        if location is None:
            return None
        if not parent and is_in_interpreter(name):
            return None
        return self._search_in(location.folders, name, is_top=not parent)

    def _search_in(self, folders: tuple[str, ...], name: str, *, is_top: bool) -> Location | None:
        stems = [f"{folder}/{name}" if folder else name for folder in folders]
        for stem in stems:
            if self.files.has(f"{stem}/__init__.py"):
                return Location(f"{stem}/__init__.py", (stem,))
            if self.files.has(f"{stem}.py"):
                return Location(f"{stem}.py")
        namespace = tuple(stem for stem in stems if self.files.has_folder(stem))
        # A folder without `__init__.py` stands behind a package that is installed, as everywhere in Python.
        return None if not namespace or (is_top and _is_installed(name)) else Location("", namespace)

    def module_names(self) -> Iterator[tuple[str, Location]]:
        yield from ((name, location) for name, location in self._known.items() if location is not None)


def is_in_interpreter(name: str) -> bool:
    """Whether a module is built into Python, as `sys` and `os` are: no file comes before it."""
    return bool(BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name))


def _is_installed(name: str) -> bool:
    """Whether a package or module of this name is installed, ours aside."""
    if name in OURS:
        return False
    try:
        spec: ModuleSpec | None = find_spec(name)
    except (ValueError, ImportError):
        return name in sys.modules
    return spec is not None and spec.origin is not None


def reached(layout: Layout) -> None:
    """Read the main file and every file that import statements lead to, those inside functions too."""
    waiting, done = [layout.main_module], set[str]()
    while waiting:
        module = waiting.pop()
        location = layout.find(module)
        if module in done or location is None:
            continue
        done.add(module)
        waiting += _parents(module)
        if not location.file:
            continue
        text = layout.files.read(location.file)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):  # importing it says what is wrong, if anything does
            continue
        package = module if location.folders else module.rpartition(".")[0]
        waiting += _imports(tree, package)


def _parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts)))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the names that may be modules in the import statements of a module of this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            anchor = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            yield from ([base] if base else [])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
