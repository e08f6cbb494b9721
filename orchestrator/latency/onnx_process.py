"""The process that `orchestrate bench` times an .onnx file in: ONNX Runtime and numpy, no torch.

python -m orchestrator.latency.onnx_process   # a request as JSON on stdin, the measurement on stdout
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import psutil

from orchestrator.system.machine import watch_load

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
WARM_UP_CALLS, MIN_CALLS = 3, 20
BLOCK_SECONDS = 0.1  # of one of the two turns
SEED = 0


class BadFileError(Exception):
    """A file that is no network of images, with the reason."""


def measure(path: str, *, threads: int, batches: list[int], seconds: float) -> dict[str, Any]:  # JSON
    """Return memory in bytes, and per batch size the times of single calls in ms, in two turns A and A."""
    process = psutil.Process()
    before = process.memory_info().rss
    session = _session(path, threads)
    loaded = process.memory_info().rss
    (source,) = session.get_inputs() if len(session.get_inputs()) == 1 else (None,)
    if source is None:
        raise BadFileError(f"it has {len(session.get_inputs())} inputs, and one is timed")
    load, peak, timings = watch_load(), loaded, []
    for batch in batches:
        images = _images(source, batch)
        turns: tuple[list[float], list[float]] = [], []
        call = _call(session, source.name, images)
        _times(call, calls=WARM_UP_CALLS)
        number = 0
        while sum(map(sum, turns)) < seconds or len(turns[1]) < MIN_CALLS:
            turns[number % 2].extend(_times(call, seconds=min(BLOCK_SECONDS, seconds / 4)))
            number += 1
        peak = max(peak, process.memory_info().rss)
        times = np.array([*turns[0], *turns[1]]) * 1e3
        timings.append(
            {
                "batch": batch,
                "p50_ms": float(np.percentile(times, 50)),
                "p95_ms": float(np.percentile(times, 95)),
                "aa": median(turns[0]) / median(turns[1]),
                "calls": len(times),
            }
        )
    return {
        "input": {"name": source.name, "type": source.type, "shape": list(source.shape)},
        "loaded_bytes": loaded - before,
        "peak_bytes": _peak_bytes(peak) - before,
        "timings": timings,
        "busy": load().busy,
    }


def _session(path: str, threads: int) -> Any:  # onnxruntime has no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, one class for each status
        raise BadFileError(" ".join(str(error).split())[:300]) from error


def _images(source: Any, batch: int) -> Any:
    """Return random images for the input of a file."""
    if source.type not in TYPES:
        raise BadFileError(f"its input is {source.type}; known: {', '.join(TYPES)}")
    first, *shape = source.shape
    if not all(isinstance(size, int) for size in shape):
        raise BadFileError(f"its input is {source.shape}: sizes beside the batch are open")
    if isinstance(first, int) and first != batch:
        raise BadFileError(f"its batch size is fixed to {first}; give --batch {first}")
    generator = np.random.default_rng(SEED)
    if source.type == "tensor(uint8)":
        return generator.integers(0, 256, (batch, *shape), dtype=np.uint8)
    return generator.standard_normal((batch, *shape)).astype(TYPES[source.type])


def _call(session: Any, name: str, images: Any) -> Callable[[], object]:
    return lambda: session.run(None, {name: images})


def _times(call: Callable[[], object], *, seconds: float = 0.0, calls: int = 1) -> list[float]:
    """Return the seconds of single calls: so many, and more until the time is over."""
    times: list[float] = []
    while len(times) < calls or sum(times) < seconds:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return times


def _peak_bytes(seen: int) -> int:
    """Return the largest resident memory that Linux has counted, or else that was seen."""
    try:  # ru_maxrss would be that of the process that started this one, where that was larger
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return seen
    peaks = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(seen, *peaks)


def main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        answer = measure(**request)
    except BadFileError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
