"""Whether two processes run the same code: by where it lies on one machine, by its content elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import StoreError

PACKAGES = ("models", "pruning", "orchestrator", "extensions")
SUFFIXES = (".py", ".yaml")


def place() -> str:
    """Where this process has its packages from; enough for others on this machine."""
    found = find_spec("models")  # without importing it, and torch with it
    return str(found.origin if found else None)


@cache
def digest() -> str:
    """The SHA-256 of the sources of all packages, wherever they are installed."""
    root, found = Path(place()).parent.parent, hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*")):
        if path.suffix in SUFFIXES:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def check_code(wanted: str) -> None:
    """StoreError unless this process runs the code of a `place`, or of a `digest`."""
    if wanted == place() or wanted == digest():
        return
    raise StoreError(
        f"this worker has another version of the code than the sweep, in {Path(place()).parent.parent}; "
        "install the same one on every node"
    )
