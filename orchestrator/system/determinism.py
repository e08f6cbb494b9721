"""torch's deterministic mode, and seeded random generators within a block."""

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
WARNING = "does not have a deterministic implementation"


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
def deterministic(device: str, *, tf32: bool = False, fast: bool = False) -> Iterator[set[str]]:
    """Make a GPU deterministic within the block; the set collects operations that have no such form.

    Those run all the same: torch warns of each. Products are rounded to TF32 only with `tf32`: torch itself
    leaves it on for convolutions. With `fast` the GPU is not deterministic: cuDNN tries its kernels, and
    takes the fastest. On a CPU this does nothing.
    """
    nondeterministic_ops: set[str] = set()
    if device == "cpu":
        yield nondeterministic_ops
        return
    os.environ.setdefault(*CUBLAS)
    benchmark, fill = torch.backends.cudnn.benchmark, _fill()
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.benchmark = fast
    _set_fill(False)  # no code of ours reads memory before it writes it
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    rounding = _tf32()
    _set_tf32((tf32, tf32))
    try:
        with capture_warning(nondeterministic_ops):
            yield nondeterministic_ops
    finally:
        _set_tf32(rounding)
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        _set_fill(fill)
        torch.backends.cudnn.benchmark = benchmark


_collecting: list[set[str]] = []  # of all blocks that are open


@contextmanager
def capture_warning(nondeterministic_ops: set[str]) -> Iterator[None]:
    """Collect the operations that torch warns of within the block; other warnings are shown.

    Blocks of several threads may overlap, as those of a stack do: each collects what any of them meets.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning
        _collecting.append(nondeterministic_ops)

        def on_warning(message: Warning | str, *args: object, **options: object) -> None:
            text = str(message)
            if WARNING in text:
                for operations in _collecting:
                    operations.add(text.split()[0])
            else:
                show(message, *args, **options)  # type: ignore[arg-type]  # passed on

        warnings.filterwarnings("always", f".*{WARNING}")
        warnings.showwarning = on_warning
        try:
            yield
        finally:
            _collecting[:] = [
                operations for operations in _collecting if operations is not nondeterministic_ops
            ]


def _tf32() -> tuple[bool, bool]:
    """Return whether (matrix products, convolutions) are rounded to TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(allowed: tuple[bool, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def _fill() -> bool:
    return torch._C._get_deterministic_fill_uninitialized_memory()


def _set_fill(mode: bool) -> None:
    torch._C._set_deterministic_fill_uninitialized_memory(mode)


def summary(numerics: Numerics, nondeterministic_ops: Collection[str]) -> str:
    """Return in words how much of a run was deterministic."""
    if numerics.device == "cpu":
        return f"cpu, threads: {numerics.threads}"
    if numerics.fast:
        return f"{numerics.device}, fast: not deterministic"
    exceptions = ", ".join(sorted(nondeterministic_ops))
    operations = f"all but {exceptions}" if exceptions else "every operation"
    return f"{numerics.device}, deterministic: {operations}"


def facts() -> dict[str, str]:
    """Return the settings of `deterministic`, for the record of a machine with GPUs."""
    return {
        "cuda.deterministic": "torch.use_deterministic_algorithms(True, warn_only=True)",
        "cuda.cudnn_benchmark": "False",
        "cuda.cublas_workspace": os.environ.get(*CUBLAS),
        "cuda.tf32": "as numerics.tf32 says",
    }


CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` within the block, and restore them after it.

    Unlike `torch.manual_seed`, this leaves the generators of other devices alone.
    """
    before = global_states(device)
    try:
        for generator in _generators(device).values():
            generator.manual_seed(seed)
        yield
    finally:
        set_global_states(before, device)


def global_states(device: torch.device) -> dict[str, Tensor]:
    """Return `cpu`, and `cuda` for such a device -> the state of its global generator, on the CPU."""
    return {name: generator.get_state() for name, generator in _generators(device).items()}


def set_global_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states that `global_states` returned for such a device. KeyError if one is missing."""
    for name, generator in _generators(device).items():
        generator.set_state(states[name])


def _generators(device: torch.device) -> dict[str, torch.Generator]:
    generators = {"cpu": torch.default_generator}
    if device.type == "cuda":
        torch.cuda.init()  # before that there are no generators
        number = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[number]
    return generators
