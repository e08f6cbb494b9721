"""The same code is known by its place here, and by its content elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.system.provenance import SOURCE_PACKAGES, check_code, install_path, source_digest

ROOT = Path(__file__).parents[3]


def digest_of(copy: Path) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import orchestrator.system.provenance as s; print(s.install_path(), s.source_digest())",
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    where, found = done.stdout.split()
    assert Path(where).is_relative_to(copy)
    return found


def test_a_copy_elsewhere_is_the_same_until_a_byte_differs(tmp_path: Path) -> None:
    for name in SOURCE_PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Of the copy, since somebody may be at work in the checkout.
    before = digest_of(tmp_path)
    (tmp_path / "orchestrator" / "notes.txt").write_text("no code")
    assert digest_of(tmp_path) == before
    with (tmp_path / "pruning" / "engine.py").open("a") as file:
        file.write("# another byte\n")
    assert digest_of(tmp_path) != before


def test_another_code_is_refused() -> None:
    check_code(install_path())
    check_code(source_digest())
    with pytest.raises(StoreError, match=r"another version of the code .* install the same one"):
        check_code("/elsewhere/models/__init__.py")
