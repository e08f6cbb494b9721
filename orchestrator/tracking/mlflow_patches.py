"""All that reaches into MLflow beside its documented interface; each use checks that it is there.

MLflow may change these parts in any release. `missing_internals` names what the installed one lacks.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
from mlflow.store.artifact.artifact_repo import ArtifactRepository as ArtifactRepository
from mlflow.version import VERSION

from orchestrator.errors import StoreError

DB_UTILS = "mlflow.store.db.utils"
PARENT_DIRS = f"{DB_UTILS}:_make_parent_dirs_if_sqlite"
ALEMBIC_CONFIG = f"{DB_UTILS}:_get_alembic_config"
LATEST_REVISION = f"{DB_UTILS}:_get_latest_schema_revision"
TABLES = "mlflow.store.db.base_sql_model:Base"
FIRST_TABLES = "mlflow.store.tracking.dbmodels.initial_models:Base"
SQL_STORE = "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore"
ARTIFACT_ROOT = "mlflow.store.tracking:DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH"
ARTIFACT_REPOSITORY = "mlflow.store.artifact.artifact_repository_registry:get_artifact_repository"
INTERNALS = (
    PARENT_DIRS,
    ALEMBIC_CONFIG,
    LATEST_REVISION,
    TABLES,
    FIRST_TABLES,
    SQL_STORE,
    ARTIFACT_ROOT,
    ARTIFACT_REPOSITORY,
)
SERVER_APP = Path("server", "fastapi_app.py")  # of `mlflow.server.fastapi_app:app`, for `orchestrate ui`


def missing_internals() -> list[str]:
    """Return the names of MLflow's internals that are used here and that the installed MLflow lacks."""
    missing = [name for name in INTERNALS if _find(name) is None]
    # Its import would start Flask and the assistant: a second, in each `orchestrate doctor`.
    if not (Path(mlflow.__file__).parent / SERVER_APP).is_file():
        missing.append(f"mlflow.{'.'.join(SERVER_APP.with_suffix('').parts)}")
    return missing


def _find(name: str) -> Any:  # an object of MLflow's, of any type
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute, None)
    except ImportError:
        return None


def _internal(name: str) -> Any:  # an object of MLflow's, of any type
    """Return what `module:attribute` names; StoreError if the installed MLflow lacks it."""
    value = _find(name)
    if value is None:
        raise StoreError(
            f"MLflow {VERSION} lacks {name.replace(':', '.')}, which this program needs; "
            "install an MLflow that it was tested with: `make install`"
        )
    return value


def artifact_repository(artifact_uri: str, *, uri: str) -> ArtifactRepository:
    """Return what reads and writes files below `artifact_uri`; `uri` is the store that it belongs to."""
    repository: ArtifactRepository = _internal(ARTIFACT_REPOSITORY)(artifact_uri, tracking_uri=uri)
    return repository


def table_names() -> frozenset[str]:
    """Return the tables of a store of the installed MLflow's schema."""
    _internal(SQL_STORE)  # its import declares the tables: without it `Base` knows none
    return frozenset(_internal(TABLES).metadata.tables)


def first_table_names() -> frozenset[str]:
    """Return the tables that MLflow makes before its first migration."""
    return frozenset(_internal(FIRST_TABLES).metadata.tables)


@lru_cache(maxsize=1)
def latest_revision() -> str:
    """Return the schema revision of the installed MLflow."""
    return str(_internal(LATEST_REVISION)())


@lru_cache(maxsize=1)
def known_revisions() -> frozenset[str]:
    """Return every schema revision that the installed MLflow can migrate from, the latest included."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_internal(ALEMBIC_CONFIG)(db_url=""))
    return frozenset(str(script.revision) for script in scripts.walk_revisions())


def create_tables(uri: str) -> None:
    """Create a SQL store with all its tables, by MLflow's own migrations."""
    _internal(SQL_STORE)(uri, _internal(ARTIFACT_ROOT)).engine.dispose()


def skip_parent_dirs() -> None:
    """Keep MLflow from creating the parent folder of a SQLite file.

    It takes the path from the URI without decoding escapes such as %25, and so would create a folder of
    another name beside the right one. Does nothing where MLflow lacks the function: then only that folder
    is too many.
    """
    if _find(PARENT_DIRS) is not None:
        module, _, attribute = PARENT_DIRS.partition(":")
        setattr(import_module(module), attribute, lambda db_uri: None)


skip_parent_dirs()
