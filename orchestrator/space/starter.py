"""The files that `orchestrate init` writes: a space, a network and a .gitignore, to be edited."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.errors import UnusableError, UsageError

TEMPLATES = Path(__file__).parent / "starter_files"
FILES = {"space.yaml": "space.yaml.template", "net.py": "net.py.template", ".gitignore": "gitignore.template"}


def write_starter(folder: Path) -> list[Path]:
    """Write the files into a folder, which is made if there is none, and return their paths.

    Raises UsageError, before anything is written, where one of them is there already, and UnusableError where
    the folder cannot be written.
    """
    paths = {folder / name: TEMPLATES / template for name, template in FILES.items()}
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already, and is left as it is; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".init-", dir=folder) as temporary:
            for path, template in paths.items():
                (Path(temporary) / path.name).write_text(
                    template.read_text(encoding="utf-8"), encoding="utf-8"
                )
            for path in paths:  # all or none, but for a crash between two renames
                (Path(temporary) / path.name).rename(path)
    except OSError as error:
        raise UnusableError(f"{folder} cannot be written: {error.strerror}; name another folder") from error
    return list(paths)
