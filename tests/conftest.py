"""What every test can count on: one thread, nobody's own settings, no GPU test without a GPU."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

# Before torch is imported anywhere: oversubscribed threads cost more than ten times, and change bits.
os.environ["OMP_NUM_THREADS"] = "1"
# An MLflow server starts half a dozen processes for jobs that nothing here has.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"

import pytest
from hypothesis import settings

OUTSIDE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR", "ORCHESTRATE_STATE_DIR")

settings.register_profile("project", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


def _allowed_seconds(item: pytest.Item) -> float:
    timeout = item.get_closest_marker("timeout")
    return float(timeout.args[0]) if timeout else 0.0


def pytest_runtest_setup() -> None:
    """MLflow makes the tables of a new SQLite store by dozens of migrations, in seconds: once is enough.

    A store that a process makes later gets a copy of those that it made first.
    """
    utils = sys.modules.get("mlflow.store.db.utils")
    if utils is not None and utils._initialize_tables is not _copied_tables:
        _migrate.append(utils._initialize_tables)
        utils._initialize_tables = _copied_tables


_migrate: list[Callable[[Any], None]] = []  # MLflow's own, for an engine


@cache
def _template() -> sqlite3.Connection:
    """The tables as MLflow makes them, in memory."""
    from sqlalchemy import create_engine

    kept = sqlite3.connect(":memory:", check_same_thread=False)
    with TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/mlflow.db")
        _migrate[0](engine)
        engine.dispose()
        with closing(sqlite3.connect(f"{folder}/mlflow.db")) as made:
            made.backup(kept)
    return kept


def _copied_tables(engine: Any) -> None:  # sqlalchemy's, which tests may not need
    from sqlalchemy import inspect

    if engine.url.get_backend_name() != "sqlite" or inspect(engine).get_table_names():
        _migrate[0](engine)
        return
    with closing(sqlite3.connect(engine.url.database)) as store:
        _template().backup(store)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_allowed_seconds, reverse=True)  # the longest first, or one worker is left with them
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
