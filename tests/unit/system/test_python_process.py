"""Processes of Python import what is installed, and nothing from the user's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import orchestrator
from orchestrator.system.python_process import run_python

PACKAGE = Path(orchestrator.__file__).parent


def test_the_working_folder_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "orchestrator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("print('of the folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = run_python("-c", "import json, orchestrator; print(orchestrator.__file__)", check=True)
    assert done.stdout.splitlines() == [str(PACKAGE / "__init__.py")]


def test_the_folders_of_the_user_s_own_python_path_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a_plugin.py").write_text("print('imported')")
    assert run_python("-c", "import a_plugin", check=True).stdout == "imported\n"


def test_no_other_process_of_python_starts_in_the_user_s_folder() -> None:
    """MLflow's server starts in an empty folder, and the stub of Ray's agent with -I."""
    starting = {file.name for file in PACKAGE.rglob("*.py") if "sys.executable" in file.read_text("utf-8")}
    assert starting == {"python_process.py", "mlflow_ui.py", "ray_patches.py"}
