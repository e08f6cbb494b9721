"""What reaches into MLflow's internals: in one module, and said by name where it is missing."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow.store.db.utils as db_utils
import pytest

from orchestrator.errors import StoreError
from orchestrator.tracking import mlflow_patches

ROOT = Path(__file__).parents[3]


def test_the_installed_mlflow_has_them_all() -> None:
    assert mlflow_patches.missing_internals() == []
    assert mlflow_patches.latest_revision() in mlflow_patches.known_revisions()
    assert mlflow_patches.first_table_names() - mlflow_patches.table_names() == set()
    assert len(mlflow_patches.table_names()) > 60


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(db_utils, "_make_parent_dirs_if_sqlite")
    monkeypatch.setattr(mlflow_patches, "SERVER_APP", Path("server", "no_such_app.py"))
    assert mlflow_patches.missing_internals() == [
        "mlflow.store.db.utils:_make_parent_dirs_if_sqlite",
        "mlflow.server.no_such_app",
    ]
    mlflow_patches.skip_parent_dirs()  # without it one folder is too many, and nothing else
    assert not hasattr(db_utils, "_make_parent_dirs_if_sqlite")


def test_what_is_needed_and_missing_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(db_utils, "_get_latest_schema_revision")
    mlflow_patches.latest_revision.cache_clear()
    with pytest.raises(StoreError, match=r"lacks mlflow\.store\.db\.utils\._get_latest_schema_revision"):
        mlflow_patches.latest_revision()


def test_no_other_module_names_them() -> None:
    internal = re.compile(r"(from|import) mlflow\.(store|utils|server)\b|mlflow\.\w*\._")
    modules = {
        path.name for path in (ROOT / "orchestrator").rglob("*.py") if internal.search(path.read_text())
    }
    assert modules == {"mlflow_patches.py", "authentication.py"}  # the latter for MLflow's own server app
