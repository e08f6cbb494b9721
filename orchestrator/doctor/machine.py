"""Cores, memory, GPUs, the loopback interface, and whether Ray can start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from orchestrator.doctor.finding import Finding, gigabytes
from orchestrator.store.address import shown
from orchestrator.sweep.session_folder import check_place

LITTLE_MEMORY = 2_000_000_000  # bytes
PAGES_PORT = 5000
DEEP_SECONDS = 120


def devices() -> Iterator[Finding]:
    """What trials run on."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", "ok", f"{os.cpu_count()}, {usable} of them for this process")
    memory = psutil.virtual_memory()
    little = memory.available < LITTLE_MEMORY
    told = f"{gigabytes(memory.available)} free of {gigabytes(memory.total)}"
    do = "close other programs, or run one trial at a time: `--max-concurrent 1`" if little else ""
    yield Finding("memory", "lacking" if little else "ok", told, do)
    yield _cuda()


def _cuda() -> Finding:
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        named = ", ".join(f"{device.name} ({gigabytes(device.total_memory)})" for device in found)
        return Finding("cuda", "ok", f"{named}; {build}")
    if torch.version.cuda is None:
        why, do = "is built without CUDA", "install a CUDA build of torch to use a GPU; none is needed"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        why, do = "sees no device: CUDA_VISIBLE_DEVICES hides them", "unset it to use a GPU"
    else:
        why, do = "sees no device", "ask `nvidia-smi` whether there is a GPU with a driver; none is needed"
    return Finding("cuda", "lacking", f"{build} {why}", do)


def loopback() -> Iterator[Finding]:
    """Everything listens on 127.0.0.1, the pages on a port of their own."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        yield Finding("loopback", "broken", f"127.0.0.1: {error.strerror}", "bring the interface lo up")
        return
    yield Finding("loopback", "ok", "127.0.0.1 can be listened on and reached")
    try:
        socket.create_server(("127.0.0.1", PAGES_PORT)).close()
    except OSError:
        do = f"`orchestrate ui --port {PAGES_PORT + 1}`"
        yield Finding("pages", "lacking", f"another program listens on port {PAGES_PORT}", do)


def ray(*, deep: bool) -> Iterator[Finding]:
    """Whether Ray's programs are there and have a place for their sockets; `deep` starts them."""
    spec = find_spec("ray")
    folder = Path(spec.origin).parent / "core" / "src" / "ray" if spec and spec.origin else Path()
    programs = (folder / "gcs" / "gcs_server", folder / "raylet" / "raylet")
    missing = [program.name for program in programs if not os.access(program, os.X_OK)]
    if missing:
        yield Finding("ray", "broken", f"it lacks {' and '.join(missing)}", "`make install`")
        return
    try:
        check_place()
    except OSError as error:
        yield Finding("ray", "broken", *str(error).split("; ", 1))
    else:
        yield _started_ray() if deep else Finding("ray", "ok", "its programs are there; --deep starts them")


def _started_ray() -> Finding:
    """In a process of its own, which may hang or crash without taking this one along."""
    code = "from orchestrator.sweep.answer import seconds_to_answer as ask; print(f'{ask():.1f}')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEEP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "ray", "broken", f"it did not answer in {DEEP_SECONDS} s", "try again with less running"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(
            "ray", "broken", f"it did not start: {shown(last)[:200]}", "`ray start --head` says more"
        )
    return Finding("ray", "ok", f"started and answered in {done.stdout.strip()} s, and stopped")
