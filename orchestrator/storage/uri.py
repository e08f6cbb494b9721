"""Read store URIs: the file or folder they name, and which hosts can reach it."""

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
ALLOWED_FORM = f"write {SQLITE}/PATH/TO/FILE.db"
SERVER_FIX = "start an `mlflow server --serve-artifacts` that they reach, and set MLFLOW_TRACKING_URI to it"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def default_uri(folder: Path, uri: str | None = None) -> str:
    """Return the store's URI: `uri`, else MLFLOW_TRACKING_URI, else a SQLite file in `folder`/mlruns.

    A SQLite path is made absolute and is escaped, so that MLflow reads it as it is meant. StoreError for a
    URI that MLflow would read as another file, or as none.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_uri(folder.absolute() / "mlruns" / "mlflow.db")
    if not uri.lower().startswith("sqlite"):
        return uri
    uri_path = uri.removeprefix(SQLITE)
    if uri_path == uri or uri_path in ("", ":memory:") or uri_path.startswith("file:"):
        raise StoreError(
            f"the store {redact_uri(uri)} is no file that every process can open; {ALLOWED_FORM}"
        )
    if "?" in uri_path:
        raise StoreError(
            f"the store {redact_uri(uri)} has a `?`, behind which MLflow reads options; "
            "write %3F for a question mark in a path, and no options"
        )
    literal, path = Path(uri_path), Path(unquote(uri_path))
    # A folder may have a percent sign in its name; then the URI was probably written without escapes.
    if path != literal and (folder / literal).parent.is_dir() and not (folder / path).parent.is_dir():
        raise StoreError(
            f"the store {uri} is read as {folder / path}, and there is no such folder; "
            "write %25 for a percent sign"
        )
    return sqlite_uri((folder / path).absolute())


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file for SQLAlchemy: `?`, and `%` before two hex digits, are escaped.

    StoreError for a path that no URI can hold.
    """
    text = str(path)
    if not text.isprintable() or "\ufffd" in text:  # bytes that are no UTF-8 are not printable, either
        raise StoreError(
            f"the store's path {text!r} has characters that a URI cannot name; use another folder, "
            "or set MLFLOW_TRACKING_URI"
        )
    return SQLITE + re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", text).replace("?", "%3F")


def sqlite_path(uri: str) -> Path:
    """Return the file of a SQLite store's URI, as SQLAlchemy reads it."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def store_folder(uri: str) -> Path | None:
    """Return the folder of a SQLite store's file; None for a server."""
    return sqlite_path(uri).parent if uri.startswith(SQLITE) else None


def state_folder() -> Path:
    """Return the user's state folder: ORCHESTRATE_STATE_DIR, or `orchestrate` in XDG_STATE_HOME."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("ORCHESTRATE_STATE_DIR") or Path(home) / "orchestrate").absolute()


def custom_state_dir() -> str | None:
    """Return the absolute state folder if ORCHESTRATE_STATE_DIR is set: workers have to use it, too."""
    return str(state_folder()) if os.environ.get("ORCHESTRATE_STATE_DIR") else None


UNREADABLE = ".unreadable"  # suffix of a pending run that is kept, but is not delivered


def outbox_folder(uri: str, state_dir: str | None = None) -> Path:
    """Return the folder of pending runs: beside a SQLite file; for a server, in the state folder."""
    folder = store_folder(uri)
    if folder is not None:
        return folder / ".outbox" / sqlite_path(uri).name
    # Without its password: after a change of the password the folder is the same.
    name = hashlib.sha256(redact_uri(uri).encode()).hexdigest()[:16]
    return (state_folder() if state_dir is None else Path(state_dir)) / "outbox" / name


def store_exists(uri: str) -> bool:
    """Whether a SQLite file exists; always True for a server. StoreError if it cannot be looked up."""
    try:
        return not uri.startswith(SQLITE) or sqlite_path(uri).exists()
    except OSError as error:  # no permission for the folder, or too long a name
        raise StoreError(
            f"the store {redact_uri(uri)} cannot be looked for: {error.strerror}; set MLFLOW_TRACKING_URI"
        ) from error


def no_store_error(uri: str) -> StoreUnavailableError:
    """Return the error for a missing store: unavailable, as its disk may only not be mounted."""
    return StoreUnavailableError(f"there is no store at {redact_uri(uri)}; `orchestrate sweep` makes one")


def check_reachable(uri: str, artifact_root: str, hosts: Collection[str]) -> None:
    """Raise StoreError if `hosts` has other hosts, and a store or its files are on this host alone."""
    other_hosts = sorted(set(hosts) - {socket.gethostname()})
    if not other_hosts:
        return
    nodes = f"the Ray cluster has nodes on other hosts ({', '.join(other_hosts[:3])})"
    if store_folder(uri) is not None:
        raise StoreError(f"{nodes}, and the store {redact_uri(uri)} is a file of this one; {SERVER_FIX}")
    if urlsplit(uri).hostname in LOOPBACK:
        raise StoreError(f"{nodes}, for which {redact_uri(uri)} is not this host; {SERVER_FIX}")
    if urlsplit(artifact_root).scheme in ("", "file"):
        raise StoreError(
            f"{nodes}, and the server keeps files at {redact_uri(artifact_root)}, "
            f"for each host its own disk; {SERVER_FIX}, and give the space another name: "
            "an experiment keeps its folder of files"
        )
