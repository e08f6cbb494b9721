"""Another Python with packages of a folder of its own, for tests of what other packages bring."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(
    *words: str, cwd: Path, site: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it in `cwd`, with the packages in `site`, and `more` environment variables."""
    search = os.pathsep.join([str(ROOT), str(site)])
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", **(more or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
