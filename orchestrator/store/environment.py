"""What a result depends on besides its configuration: versions, machine, code."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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

    from orchestrator.walk import determinism

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
