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
from orchestrator.system.machine import cards

PACKAGES = (
    "pruning-orchestrator",
    "torch",
    "torchvision",
    "ray",
    "mlflow",
    "optuna",
    "fvcore",
    "scikit-learn",
    "numpy",
    "safetensors",
)


@cache
def environment() -> dict[str, str]:
    """Return versions of packages and Python, platform, processor, cores, GPUs and the code's commit.

    Cached: the code that runs is the code that was imported.
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
    return facts | {f"gpu.{number}": name for number, name in enumerate(_gpu_names(count))}


def _gpu_names(count: int) -> list[str]:
    """Return the names of this process's GPUs, asked of the driver unless the process has them in use.

    torch would take some of the first GPU's memory to answer, and keep it as long as the process lives.
    """
    import torch

    names = [card.name for card in cards()] if count and not torch.cuda.is_initialized() else []
    return names if len(names) == count else [torch.cuda.get_device_name(number) for number in range(count)]


def card(device: str) -> dict[str, str]:
    """Return the tag that names the GPU model that a run used; nothing for a run on a CPU.

    It is in no key: two models may give different bits, and `rerun --check` says so.
    """
    import torch

    has_gpu = device != "cpu" and torch.cuda.is_available()
    return {"gpu": torch.cuda.get_device_name(torch.cuda.current_device())} if has_gpu else {}


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
    """Return the commit of the code, with + for local changes; `unknown` outside a checkout."""
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


SOURCE_PACKAGES = ("models", "pruning", "orchestrator")
SUFFIXES = (".py", ".yaml")


def install_path() -> str:
    """Return where the packages are installed, which identifies the code on this machine."""
    spec = find_spec("models")  # without importing it, and torch with it
    return str(spec.origin if spec else None)


@cache
def source_digest() -> str:
    """Return the SHA-256 of the sources of all packages, wherever they are installed."""
    root, digest = Path(install_path()).parent.parent, hashlib.sha256()
    for path in sorted(path for package in SOURCE_PACKAGES for path in (root / package).rglob("*")):
        if path.suffix in SUFFIXES:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def check_code(code: str) -> None:
    """Raise StoreError unless this process runs `code`: an `install_path` or a `source_digest`."""
    if code in (install_path(), source_digest()):
        return
    raise StoreError(
        "this worker has another version of the code than the sweep, in "
        f"{Path(install_path()).parent.parent}; install the same one on every node"
    )
