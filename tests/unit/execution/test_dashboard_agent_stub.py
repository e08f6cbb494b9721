"""What runs in the place of Ray's dashboard agent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from orchestrator.execution.dashboard_agent_stub import PORTS
from orchestrator.execution.ray_patches import AGENT_OPTION, AGENT_STUB, rewrite_arguments

# As the raylet starts its agent: the child of a process that then does something else.
RAYLET = """\
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", *sys.argv[1:]])
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_for(what: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Until `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_says_that_there_are_no_ports_and_ends_with_its_raylet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RAYLET, str(AGENT_STUB), str(tmp_path), "a1b2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as raylet:
        assert raylet.stdout is not None
        child = psutil.Process(int(raylet.stdout.readline()))
        files = {tmp_path / f"{name}_a1b2" for name in PORTS}
        wait_for(lambda: set(tmp_path.iterdir()) == files)
        assert {file.read_text() for file in files} == {"-1"}
        time.sleep(1.2)
        assert child.is_running()
        raylet.kill()
    wait_for(lambda: not child.is_running())


def test_it_is_given_the_place_of_the_agent() -> None:
    agent = "/a/python -u '/a b/agent.py' --node-id=c3 --session-dir=/tmp/session --minimal"
    words = ["raylet", f"{AGENT_OPTION}{agent}", "--num_prestart_python_workers=2", "--store=/x"]
    found = [rewrite_arguments(word, 5) for word in words]
    given = f"{AGENT_OPTION}{sys.executable} -I -S {AGENT_STUB} /tmp/session c3"
    assert found == ["raylet", given, "--num_prestart_python_workers=5", "--store=/x"]
