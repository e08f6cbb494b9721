"""Equal bits on a GPU: torch's deterministic mode, set in one place, and how far it reached.

On a CPU one thread is enough, and nothing here changes anything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from orchestrator.config import Numerics

# Read by cuBLAS when it is first used: fixed buffers, without which its sums may be ordered anew.
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
LOOSE = "nondeterministic"  # the tag of a run that names them
NO_FORM = "does not have a deterministic implementation"


@contextmanager
def deterministic(device: str, *, tf32: bool = False) -> Iterator[set[str]]:
    """For a walk on a GPU; the set holds the operations it met that have no deterministic form.

    Those run all the same: a warning of torch's says which. Products are rounded to TF32 only where `tf32`
    says so: torch itself leaves it on for convolutions.
    """
    loose: set[str] = set()
    if device == "cpu":
        yield loose
        return
    os.environ.setdefault(*CUBLAS)
    benchmark, fill = torch.backends.cudnn.benchmark, _fill()
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.benchmark = False
    _set_fill(False)  # nothing here reads what it has not written
    torch.use_deterministic_algorithms(True, warn_only=True)
    rounding = _tf32()
    _set_tf32((tf32, tf32))
    try:
        with _hearing(loose):
            yield loose
    finally:
        _set_tf32(rounding)
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        _set_fill(fill)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _hearing(loose: set[str]) -> Iterator[None]:
    """Keeps the names that torch warns of; every other warning goes its way."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def hear(message: Warning | str, *where: object, **more: object) -> None:
            text = str(message)
            if NO_FORM in text:
                loose.add(text.split()[0])
            else:
                show(message, *where, **more)  # type: ignore[arg-type]  # as they came

        warnings.filterwarnings("always", f".*{NO_FORM}")
        warnings.showwarning = hear
        yield


def _tf32() -> tuple[bool, bool]:
    """Whether (matrix products, convolutions) are rounded to TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(allowed: tuple[bool, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def _fill() -> bool:
    return torch._C._get_deterministic_fill_uninitialized_memory()


def _set_fill(mode: bool) -> None:
    torch._C._set_deterministic_fill_uninitialized_memory(mode)


def level(numerics: Numerics, loose: Collection[str]) -> str:
    """How much of a walk was deterministic, in words."""
    if numerics.device == "cpu":
        return f"cpu, threads: {numerics.threads}"
    reached = f"all but {', '.join(sorted(loose))}" if loose else "every operation"
    return f"{numerics.device}, deterministic: {reached}"


def facts() -> dict[str, str]:
    """The mode as `deterministic` sets it, for the record of a machine with GPUs."""
    return {
        "cuda.deterministic": "torch.use_deterministic_algorithms(True, warn_only=True)",
        "cuda.cudnn_benchmark": "False",
        "cuda.cublas_workspace": os.environ.get(*CUBLAS),
        "cuda.tf32": "as numerics.tf32 says",
    }
