"""Store URIs: their folder, their text without secrets, and who can reach them."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.redaction import redact_uri as redact_uri

SQLITE = "sqlite:///"
WRITE_SO = f"write {SQLITE}/PATH/TO/FILE.db"


def default_uri(folder: Path, given: str | None = None) -> str:
    """The store of `given`, else of MLFLOW_TRACKING_URI, else the SQLite file below `folder`/mlruns.

    A path is absolute and escaped, so that MLflow reads it as we do. StoreError for an address that it
    would read as another file, or as none.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_uri(folder.absolute() / "mlruns" / "mlflow.db")
    if not uri.lower().startswith("sqlite"):
        return uri
    rest = uri.removeprefix(SQLITE)
    if rest == uri or rest in ("", ":memory:") or rest.startswith("file:"):
        raise StoreError(f"the store {redact_uri(uri)} is no file that every process finds; {WRITE_SO}")
    if "?" in rest:
        raise StoreError(
            f"the store {redact_uri(uri)} has a `?`, behind which MLflow reads options; "
            "write %3F for a question mark in a path, and no options"
        )
    literal, path = Path(rest), Path(unquote(rest))
    if path != literal and (folder / literal).parent.is_dir() and not (folder / path).parent.is_dir():
        raise StoreError(
            f"the store {uri} is read as {folder / path}, and there is no such folder; "
            "write %25 for a percent sign"
        )
    return sqlite_uri((folder / path).absolute())


def sqlite_uri(path: Path) -> str:
    """The URI by which SQLAlchemy finds a SQLite file: a `?`, and what looks like an escape, are escaped.

    StoreError for a path that no URI can name.
    """
    text = str(path)
    if not text.isprintable() or "\ufffd" in text:  # what is no UTF-8 is not printable, either
        raise StoreError(
            f"the store's path {text!r} has characters that a URI cannot name; use another folder, "
            "or set MLFLOW_TRACKING_URI"
        )
    return SQLITE + re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", text).replace("?", "%3F")


def sqlite_path(uri: str) -> Path:
    """The file of a SQLite store's URI, as SQLAlchemy reads it."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def store_folder(uri: str) -> Path | None:
    """The folder of a SQLite store's file; None for a server."""
    return sqlite_path(uri).parent if uri.startswith(SQLITE) else None


def state_folder() -> Path:
    """What is kept for a user on this machine: ORCHESTRATE_STATE_DIR, or the folder usual for that."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("ORCHESTRATE_STATE_DIR") or Path(home) / "orchestrate").absolute()


def custom_state_dir() -> str | None:
    """The state folder, absolute, if somebody has chosen it: then workers have it there, too."""
    return str(state_folder()) if os.environ.get("ORCHESTRATE_STATE_DIR") else None


def outbox_folder(uri: str, state_dir: str | None = None) -> Path:
    """Where results wait for a store: beside a SQLite file, below the state folder for a server."""
    folder = store_folder(uri)
    if folder is not None:
        return folder / ".outbox" / sqlite_path(uri).name
    # Without its secrets: who changes a password finds the same folder.
    name = hashlib.sha256(redact_uri(uri).encode()).hexdigest()[:16]
    return (state_folder() if state_dir is None else Path(state_dir)) / "outbox" / name


def store_exists(uri: str) -> bool:
    """Whether there is a store to read: a server is taken to be one. StoreError where nobody can see."""
    try:
        return not uri.startswith(SQLITE) or sqlite_path(uri).exists()
    except OSError as error:  # a folder that may not be searched, a name that is too long
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be looked for: {error.strerror}; set MLFLOW_TRACKING_URI"
        ) from error


def no_store_error(uri: str) -> StoreUnavailableError:
    """What is to be raised where there is none; a disk that is not mounted may bring it back."""
    return StoreUnavailableError(f"there is no store at {redact_uri(uri)}; `orchestrate sweep` makes one")


SERVER = "start an `mlflow server --serve-artifacts` that they reach, and set MLFLOW_TRACKING_URI to it"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_reachable(uri: str, artifact_root: str, hosts: Collection[str]) -> None:
    """StoreError where a store or its files lie on this host alone and `hosts` has others."""
    others = sorted(set(hosts) - {socket.gethostname()})
    if not others:
        return
    named = f"the Ray cluster has nodes on other hosts ({', '.join(others[:3])})"
    if store_folder(uri) is not None:
        raise StoreError(f"{named}, and the store {redact_uri(uri)} is a file of this one; {SERVER}")
    if urlsplit(uri).hostname in LOOPBACK:
        raise StoreError(f"{named}, for which {redact_uri(uri)} is not this host; {SERVER}")
    if urlsplit(artifact_root).scheme in ("", "file"):
        raise StoreError(
            f"{named}, and the server keeps files at {redact_uri(artifact_root)}, for each host its own disk; "
            f"{SERVER}, and give the space another name: an experiment keeps its place for files"
        )
