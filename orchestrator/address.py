"""Where the store is: its URI, and what of it may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

SQLITE = "sqlite:///"


def default_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file below `folder`/mlruns; always absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{folder.absolute() / 'mlruns' / 'mlflow.db'}"
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/"):
        uri = f"{SQLITE}{(folder / uri.removeprefix(SQLITE)).absolute()}"
    return uri


def shown(text: str) -> str:
    """A URI, or a message that quotes one, without user name, password and secrets among its options."""
    text = re.sub(r"(?<!sqlite:)(?<!file:)(?<!/)//\S*@", "//***@", text)
    return re.sub(r"(?i)([?&]\w*(?:password|token|secret)\w*=)[^&\s]*", r"\1***", text)


def store_folder(uri: str) -> Path | None:
    """The folder of a SQLite store's file; None for a server."""
    return Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else None


def exists(uri: str) -> bool:
    """Whether there is a store to read: a server is taken to be one."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()
