"""What every test can count on: one thread, nobody's own settings, no GPU test without a GPU."""

from __future__ import annotations

import gc
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from recorded import Store
    from server import Server

# Nothing else of the caller's shell reaches a test or a process that one starts: NO_COLOR, COLUMNS, LC_ALL,
# PYTHONWARNINGS, a proxy, MLFLOW_TRACKING_URI or RAY_ADDRESS would each change what is printed or done.
INHERITED = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LD_LIBRARY_PATH|FUZZ_SECONDS|(CUDA|NVIDIA|PYTEST_XDIST)_.*"
)
CACHES = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
for variable in [name for name in os.environ if not INHERITED.fullmatch(name)]:
    del os.environ[variable]
os.environ |= {
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(Path(__file__).parent.parent),  # a child tests this tree, whichever is installed
    "XDG_CACHE_HOME": CACHES,  # matplotlib's list of fonts takes seconds to make
    # Before torch is imported anywhere: oversubscribed threads cost more than ten times, and change bits.
    "OMP_NUM_THREADS": "1",
    # An MLflow server starts half a dozen processes for jobs that nothing here has.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
OUTSIDE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR", "ORCHESTRATE_STATE_DIR")

settings.register_profile("few", deadline=None, max_examples=15, derandomize=True)
settings.register_profile("many", settings.get_profile("few"), max_examples=60)  # make test-long
settings.load_profile("few")


@pytest.fixture(autouse=True, scope="session")
def _empty_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No data sets, no results that wait for a store, no settings of the person who runs the tests."""
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what MLflow, Ray or an earlier test of this process set."""
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def _frozen_modules() -> None:
    """What is imported stays: the collector looked through it again and again, for a tenth of all seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty store for a module's recorded runs."""
    from recorded import Store

    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of all modules of this process, which starts when the first of them needs it."""
    from server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def server(session_server: Server) -> Server:
    """`mlflow server --serve-artifacts`, for tests that do not stop it; others have been there before."""
    if session_server.process is None:
        session_server.start()
    return session_server


def _expected_length(item: pytest.Item) -> tuple[float, bool]:
    """Sort by the seconds that a test is allowed, then by the mark `slow`."""
    timeout = item.get_closest_marker("timeout")
    return float(timeout.args[0]) if timeout else 0.0, item.get_closest_marker("slow") is not None


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
    items.sort(key=_expected_length, reverse=True)  # the longest first, or one worker is left with them
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
