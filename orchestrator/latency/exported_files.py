"""Latency and memory of an exported file, as `orchestrate bench` measures them: in a process of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.errors import ExportError, UsageError
from orchestrator.formatting import format_size
from orchestrator.system.python_process import run_python
from orchestrator.system.timing import MAX_SELF_RATIO, MIN_SELF_RATIO

SUFFIX = ".onnx"
PACKAGES = ("onnxruntime",)
PROCESS = "orchestrator.latency.onnx_process"


@dataclass(frozen=True)
class BatchTime:
    """Times of single calls at one batch size, in ms; `aa` is the ratio of two turns of the same calls."""

    batch: int
    p50_ms: float
    p95_ms: float
    aa: float
    calls: int


@dataclass(frozen=True)
class Bench:
    """What was measured of a file on `threads` threads of this CPU.

    `loaded_bytes` is the memory that the file takes once it is loaded, `peak_bytes` the most while it ran,
    each above that of ONNX Runtime itself.
    """

    name: str
    bytes: int
    threads: int
    loaded_bytes: int
    peak_bytes: int
    timings: tuple[BatchTime, ...]
    busy: str

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why no claim should rest on these times; empty if they can be relied on."""
        ratios = [time for time in self.timings if not MIN_SELF_RATIO <= time.aa <= MAX_SELF_RATIO]
        doubts = [f"A/A is {time.aa:.2f} at batch {time.batch}" for time in ratios]
        return (*doubts, *([self.busy] if self.busy else []))

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON."""
        timings = [dict(vars(time)) for time in self.timings]
        return {**vars(self), "timings": timings, "doubts": list(self.doubts)}

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        memory = f"{format_size(self.loaded_bytes)} loaded, {format_size(self.peak_bytes)} at most"
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        yield f"{self.name}: {format_size(self.bytes)}, memory {memory}; {threads} of this CPU"
        yield f"{'batch':>6} {'p50 ms':>10} {'p95 ms':>10} {'images/s':>10} {'A/A':>6} {'calls':>7}"
        for time in self.timings:
            rate = 1e3 * time.batch / time.p50_ms
            yield (
                f"{time.batch:>6} {time.p50_ms:>10.3f} {time.p95_ms:>10.3f} {rate:>10,.0f} {time.aa:>6.2f} "
                f"{time.calls:>7,}"
            )
        if self.doubts:
            yield f"not reliable: {'; '.join(self.doubts)}"


def bench_file(path: Path, *, threads: int, batches: Sequence[int], seconds: float) -> Bench:
    """Measure an .onnx file on random images, for about `seconds` at each batch size.

    Raises UsageError for a file of another kind, and ExportError where it cannot be run.
    """
    if path.suffix != SUFFIX:
        raise UsageError(
            f"{path} is no {SUFFIX} file; export one with `orchestrate export RUN --format onnx`"
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    _check_packages()
    request = {"path": str(path), "threads": threads, "batches": list(batches), "seconds": seconds}
    done = run_python("-m", PROCESS, input=json.dumps(request))
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ExportError(f"{path} cannot be timed: {reason[:300]}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ExportError(f"{path} cannot be timed: {answer['error']}")
    return Bench(
        path.name,
        path.stat().st_size,
        threads,
        answer["loaded_bytes"],
        answer["peak_bytes"],
        tuple(BatchTime(**time) for time in answer["timings"]),
        answer["busy"],
    )


def bench(source: str, *, threads: int, batches: Sequence[int], seconds: float, uri: str) -> Bench:
    """Measure an .onnx file, or a recorded network: exported as .onnx to a temporary file."""
    if Path(source).suffix in (SUFFIX, ".pt2", ".safetensors"):
        return bench_file(Path(source), threads=threads, batches=batches, seconds=seconds)
    from orchestrator.model_io.export import export

    _check_packages()
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        # The bare network: its data need not be at hand.
        exported = export(source, format="onnx", out=Path(folder), scaling=False, uri=uri)
        return bench_file(exported.path, threads=threads, batches=batches, seconds=seconds)


def _check_packages() -> None:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ExportError(f"bench needs {', '.join(missing)}: pip install 'pruning-orchestrator[export]'")
