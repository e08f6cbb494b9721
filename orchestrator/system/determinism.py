"""torch's deterministic mode, and its random generators seeded for a block."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from orchestrator.config import Numerics

# Read by cuBLAS when it is first used: fixed buffers, without which its sums may be ordered anew.
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NONDETERMINISTIC_TAG = "nondeterministic"  # the tag of a run that names them
NO_FORM = "does not have a deterministic implementation"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block, torch uses this many threads for an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        with capture_warning(loose):
            yield loose
    finally:
        _set_tf32(rounding)
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        _set_fill(fill)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def capture_warning(loose: set[str]) -> Iterator[None]:
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


def summary(numerics: Numerics, loose: Collection[str]) -> str:
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


CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """The global generators of the CPU and of `device` start from `seed`; afterwards they are as before.

    Those of other devices are not touched, which `torch.manual_seed` would seed as well.
    """
    before = global_states(device)
    try:
        for generator in _generators(device).values():
            generator.manual_seed(seed)
        yield
    finally:
        set_global_states(before, device)


def global_states(device: torch.device) -> dict[str, Tensor]:
    """`cpu`, and `cuda` where the device is one -> the state of its global generator, copied to the CPU."""
    return {name: generator.get_state() for name, generator in _generators(device).items()}


def set_global_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the global generators the states that `global_states` read on such a device; KeyError else."""
    for name, generator in _generators(device).items():
        generator.set_state(states[name])


def _generators(device: torch.device) -> dict[str, torch.Generator]:
    generators = {"cpu": torch.default_generator}
    if device.type == "cuda":
        torch.cuda.init()  # there are none before
        number = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[number]
    return generators
