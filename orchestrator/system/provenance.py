"""Versions, hardware, git commit and a digest of the installed sources."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import StoreError

PACKAGES = (
    "pruning-orchestrator",
    "torch",
    "torchvision",
    "ray",
    "mlflow",
    "optuna",
    "fvcore",
    "torch-pruning",
    "scikit-learn",
    "numpy",
    "safetensors",
)


@cache
def environment() -> dict[str, str]:
    """Flat facts: versions of packages and Python, platform, processor, cores, GPUs, the code's commit.

    Asked once in a process, since the code that runs is the code that was imported.
    """
    import torch

    from orchestrator.system import determinism

    facts = {f"package.{name}": _version(name) for name in PACKAGES}
    facts |= {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "commit": _commit(),
    }
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts |= determinism.facts() if count else {}
    return facts | {f"gpu.{number}": torch.cuda.get_device_name(number) for number in range(count)}


def card(device: str) -> dict[str, str]:
    """The tag that names the kind of GPU that a run used; nothing for a run on a CPU.

    It is in no key: two kinds may give other bits, and `rerun --check` says so.
    """
    import torch

    used = device != "cpu" and torch.cuda.is_available()
    return {"gpu": torch.cuda.get_device_name(torch.cuda.current_device())} if used else {}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _commit() -> str:
    """The commit of the code, with + where it has local changes; unknown outside a checkout."""
    folder = Path(__file__).parent.parent
    try:
        head = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain", "--", "."],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


SOURCE_PACKAGES = ("models", "pruning", "orchestrator", "extensions")
SUFFIXES = (".py", ".yaml")


def install_path() -> str:
    """Where this process has its packages from; enough for others on this machine."""
    found = find_spec("models")  # without importing it, and torch with it
    return str(found.origin if found else None)


@cache
def source_digest() -> str:
    """The SHA-256 of the sources of all packages, wherever they are installed."""
    root, found = Path(install_path()).parent.parent, hashlib.sha256()
    for path in sorted(path for package in SOURCE_PACKAGES for path in (root / package).rglob("*")):
        if path.suffix in SUFFIXES:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def check_code(wanted: str) -> None:
    """StoreError unless this process runs the code of a `place`, or of a `digest`."""
    if wanted == install_path() or wanted == source_digest():
        return
    raise StoreError(
        "this worker has another version of the code than the sweep, in "
        f"{Path(install_path()).parent.parent}; install the same one on every node"
    )
