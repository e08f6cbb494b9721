"""What of a store other hosts can reach: a worker never assumes the driver's disk."""

from __future__ import annotations

import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from orchestrator.errors import StoreError
from orchestrator.store.address import shown, store_folder

SERVER = "start an `mlflow server --serve-artifacts` that they reach, and set MLFLOW_TRACKING_URI to it"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_reach(uri: str, artifact_root: str, hosts: Collection[str]) -> None:
    """StoreError where a store or its files lie on this host alone and `hosts` has others."""
    others = sorted(set(hosts) - {socket.gethostname()})
    if not others:
        return
    named = f"the Ray cluster has nodes on other hosts ({', '.join(others[:3])})"
    if store_folder(uri) is not None:
        raise StoreError(f"{named}, and the store {shown(uri)} is a file of this one; {SERVER}")
    if urlsplit(uri).hostname in LOOPBACK:
        raise StoreError(f"{named}, for which {shown(uri)} is not this host; {SERVER}")
    if urlsplit(artifact_root).scheme in ("", "file"):
        raise StoreError(
            f"{named}, and the server keeps files at {shown(artifact_root)}, for each host its own disk; "
            f"{SERVER}, and give the space another name: an experiment keeps its place for files"
        )
