"""A store that other hosts do not reach is refused before anything runs on them."""

from __future__ import annotations

import socket

import pytest

from orchestrator.errors import StoreError
from orchestrator.storage.uri import check_reachable

HERE = socket.gethostname()
SQLITE = "sqlite:////tmp/x/mlruns/mlflow.db"
FILES = "file:///tmp/x/mlruns/artifacts/space"
SERVED = "mlflow-artifacts:/1"


@pytest.mark.parametrize(
    ("uri", "root", "said"),
    [
        (
            SQLITE,
            FILES,
            r"other hosts \(b, c\), and the store sqlite:.* is a file of this one; start an `mlflow",
        ),
        ("http://127.0.0.1:5000", SERVED, "for which http://127.0.0.1:5000 is not this host"),
        ("http://me:secret@localhost:5000", SERVED, r"http://\*\*\*@localhost:5000 is not this host"),
        ("http://10.0.0.9:5000", FILES, "the server keeps files at file:///tmp/x"),
        ("http://10.0.0.9:5000", "./mlruns/1", r"the server keeps files at \./mlruns/1"),
    ],
)
def test_what_is_only_here_is_refused(uri: str, root: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        check_reachable(uri, root, {"c", HERE, "b"})
    check_reachable(uri, root, {HERE})


@pytest.mark.parametrize("root", [SERVED, "s3://bucket/1"])
def test_what_a_server_gives_out_is_reached(root: str) -> None:
    check_reachable("http://10.0.0.9:5000", root, {"b", HERE})
