"""Imports of this project's packages from where they are installed together.

A folder of one's own that is called `models` or `pruning` hides an installed package of that name wherever
the folder comes first on Python's path: with `python -m`, in notebooks, in workers of Ray. `models` and
`orchestrator` therefore run this file, by its path, before they import one another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "pruning")


class SiblingFinder:
    """Finds the packages beside this one, before any other folder is looked at."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        folder = ROOT / fullname
        return spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def claim_packages() -> None:
    """Let `models` and `pruning` be this project's packages from here on, in the whole process.

    ImportError where others of these names are loaded already.
    """
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is not None and not _is_ours(module, name):
            folders = list(getattr(module, "__path__", []))
            where = getattr(module, "__file__", None) or (folders or ["elsewhere"])[0]
            raise ImportError(
                f"another {name} is loaded already, from {where}; import orchestrator before it, and reach "
                f"your own by its path: models.build('{name}/file.py:function', ...)"
            )
    if not any(type(finder).__name__ == SiblingFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, SiblingFinder())


def _is_ours(module: ModuleType, name: str) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == ROOT / name / "__init__.py"
