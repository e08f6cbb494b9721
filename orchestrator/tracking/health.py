"""Whether a store can be read, and how much it holds, looked at without changing anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.store.address import SQLITE, shown

ONE_SHORT_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
SECONDS = 3


@dataclass(frozen=True)
class Health:
    """`problem` is empty where the store can be used; `runs` is None where counting them would take long."""

    runs: int | None = None
    problem: str = ""
    do: str = ""


def health(uri: str) -> Health:
    """Of a server or of a database that exists; never creates or migrates one."""
    try:
        if uri.startswith(("http://", "https://")):
            with _settings(ONE_SHORT_TRY):
                MlflowClient(uri).search_experiments(max_results=1)
            return Health()
        return _of_database(uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # a driver may be missing
        reason = next(iter(shown(str(error)).splitlines()), type(error).__name__)
        return Health(
            problem=reason[:200], do="start the server, or set MLFLOW_TRACKING_URI to another store"
        )


def _of_database(uri: str) -> Health:
    sqlite = uri.startswith(SQLITE)
    address = f"{SQLITE}file:{uri.removeprefix(SQLITE)}?mode=ro&uri=true" if sqlite else uri
    engine = create_engine(address, connect_args={"timeout" if sqlite else "connect_timeout": SECONDS})
    try:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            runs = connection.execute(
                text("SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'")
            ).scalar()
    finally:
        engine.dispose()
    if found == (wanted := _get_latest_schema_revision()):
        return Health(runs=int(runs or 0))
    problem = f"its schema is {found}, and this MLflow wants {wanted}"
    return Health(int(runs or 0), problem, f"copy it, then `mlflow db upgrade {shown(uri)}`")


@contextmanager
def _settings(values: dict[str, str]) -> Iterator[None]:
    """MLflow reads its settings at each call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
