"""Where the store is: its URI, and what of it may be shown."""

from __future__ import annotations

import hashlib
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


def state_folder() -> Path:
    """What is kept for a user on this machine: ORCHESTRATE_STATE_DIR, or the folder usual for that."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("ORCHESTRATE_STATE_DIR") or Path(home) / "orchestrate").absolute()


def chosen_state_dir() -> str | None:
    """The state folder, absolute, if somebody has chosen it: then workers have it there, too."""
    return str(state_folder()) if os.environ.get("ORCHESTRATE_STATE_DIR") else None


def outbox_folder(uri: str, state_dir: str | None = None) -> Path:
    """Where results wait for a store: beside a SQLite file, below the state folder for a server."""
    folder = store_folder(uri)
    if folder is not None:
        return folder / ".outbox" / Path(uri.removeprefix(SQLITE)).name
    # Without its secrets: who changes a password finds the same folder.
    name = hashlib.sha256(shown(uri).encode()).hexdigest()[:16]
    return (state_folder() if state_dir is None else Path(state_dir)) / "outbox" / name


def exists(uri: str) -> bool:
    """Whether there is a store to read: a server is taken to be one."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()
