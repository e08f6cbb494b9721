"""Targets one after another, again and again, until the time is over."""

from __future__ import annotations

import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import psutil
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from orchestrator.errors import OrchestrateError

from . import networks, spaces, torch_archives

CPU_SECONDS = 2.0  # of one example
WALL_SECONDS = 60  # of one that waits for something
MEMORY = 500_000_000  # bytes that one example may take
BATCH = 50  # examples of a target before the next has its turn
LONGEST = 4000  # signs of a message

Target = tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]


def targets() -> dict[str, Target]:
    return {
        "space": (spaces.space_files(), spaces.read_space),
        "set": (spaces.settings(), spaces.read_settings),
        "pth": (torch_archives.torch_files(), torch_archives.read_torch_file),
        "safetensors": (networks.safetensors_files(), networks.read_safetensors),
        "manifest": (networks.manifests(), networks.read_manifest_of),
        "arch": (networks.arch_files(), networks.read_arch),
        "folder": (networks.folders(), networks.read_folder),
        "export": (networks.exports(), networks.read_export),
    }


@dataclass
class Findings:
    texts: list[str] = field(default_factory=list)
    examples: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)  # where exceptions came from: each is told once


class SlowError(BaseException):
    """No Exception: nothing that is tested may catch it."""


def run_targets(seconds: float, number: int, only: str, folder: Path) -> Findings:
    findings, end = Findings(), monotonic() + seconds
    known = {name: target for name, target in targets().items() if only in ("", name)}
    _warm()
    _limit_memory()
    while monotonic() < end:
        for name, target in known.items():
            number += 1
            _batch(name, target, number, folder, findings, end)
    return findings


def _batch(name: str, target: Target, number: int, folder: Path, findings: Findings, end: float) -> None:
    strategy, read = target
    failed: list[str] = []

    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(strategy)
    def run(example: Any) -> None:
        if monotonic() > end and not failed:
            return
        findings.examples[name] += 1
        (folder / "example").write_text(f"{name} (batch {number}): {example!r}", errors="backslashreplace")
        try:
            _run_one(read, folder, example)
        except BaseException as error:
            place = f"{name}: {type(error).__name__} {_place(error)}"
            if place in findings.places:
                return
            failed[:] = [place, f"{place}: {str(error)[:300]}\n  batch {number}, example: {example!r:.1500}"]
            raise

    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or not failed:
            raise
        findings.places.add(failed[0])
        last = "".join(traceback.format_exception(error)[-6:])
        findings.texts.append(f"{failed[1]}\n{last[-1500:]}")


def _run_one(read: Callable[[Path, Any], None], folder: Path, example: Any) -> None:
    inside = folder / "inside"
    inside.mkdir(exist_ok=True)
    for path in inside.iterdir():
        path.unlink()
    before = psutil.Process().memory_info().rss
    with _limited_time():
        try:
            read(inside, example)
        except OrchestrateError as error:
            text = str(error)
            assert "\n" not in text, f"more than a line: {text!r:.300}"
            assert len(text) <= LONGEST, f"{len(text)} signs"
    grown = psutil.Process().memory_info().rss - before
    assert grown < MEMORY, f"{grown} bytes of memory"


def _place(error: BaseException) -> str:
    """The last line of ours that it came through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/tests/fuzz/running" not in frame.filename
    ]
    ours = [
        frame
        for frame in frames
        if any(f"/{name}/" in frame.filename for name in ("orchestrator", "models", "pruning"))
    ]
    frame = (ours or frames or [None])[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "here"


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise SlowError(f"more than {CPU_SECONDS} s" if number == signal.SIGPROF else "it waits")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _warm() -> None:
    """Imports that the first forward pass without storage takes are nobody's fault."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.device("meta"), torch.no_grad():
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten()
        ).eval()
        net(torch.empty(2, 1, 8, 8, device="meta"))
        torch.nn.functional.linear(torch.empty(2, 4), torch.empty(3, 4)).relu()


def _limit_memory() -> None:
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * MEMORY, taken + 2 * MEMORY))
