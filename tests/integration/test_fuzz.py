"""Twenty seconds of the fuzzer; `python -m tests.fuzz --seconds 600` is more of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_crafted_input_is_refused_in_a_line_in_a_moment() -> None:
    seconds = os.environ.get("FUZZ_SECONDS", "10")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", seconds, "--seed", "12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout


@pytest.mark.slow
def test_a_fault_is_found(tmp_path: Path) -> None:
    """A reader that raises KeyError for some manifests, as one of them once did."""
    (tmp_path / "broken.py").write_text(
        "import json\n"
        "from tests.fuzz import networks, running\n"
        "def read(folder, data):\n"
        "    try:\n"
        "        found = json.loads(data)\n"
        "    except (ValueError, RecursionError):\n"
        "        return\n"
        "    if isinstance(found, dict):\n"
        "        [entry['bytes'] for entry in found.values() if isinstance(entry, dict)]\n"
        "networks.read_manifest_of = read\n"
        "from pathlib import Path\n"
        "for seconds in (3, 15):\n"  # the second where the machine has much else to do
        f"    found = running.run_targets(seconds, 1, 'manifest', Path({str(tmp_path)!r}))\n"
        "    if found.texts:\n"
        "        break\n"
        "    running._limit_memory = lambda: None\n"  # a limit cannot be raised again
        "print(found.texts[0])\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "broken.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "KeyError" in done.stdout, done.stderr
