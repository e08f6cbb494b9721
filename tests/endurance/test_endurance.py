"""Eight kills, each kind at least once; `python tests/endurance --kills 200` goes on for a night."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = [sys.executable, str(Path(__file__).parent), "--short", "--seed", "1"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_again_and_again_loses_repeats_and_leaves_nothing() -> None:
    """In a process of its own, which adopts the orphans of what it kills."""
    done = subprocess.run(SHORT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    kills = [line.split(" | ")[1] for line in done.stdout.splitlines()[2:]]
    assert len(kills) == 8
    hit = {kill for kill in kills if not kill.endswith("(too late)")}
    assert hit >= {"driver", "worker", "raylet", "gcs_server", "server"}, done.stdout
    if os.geteuid() == 0:
        assert "disk" in hit, done.stdout
