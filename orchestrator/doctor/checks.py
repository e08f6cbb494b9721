"""Checks of Python, packages, machine, Ray, store and data."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from orchestrator.doctor.result import CheckResult, Report, State
from orchestrator.execution.ray_session_folder import check_temporary_folder
from orchestrator.formatting import format_gigabytes
from orchestrator.storage.uri import exists, redact_uri, store_folder

if TYPE_CHECKING:
    from orchestrator.tracking.connection import Health


PROJECT = "pruning-orchestrator"
TOLD = ("torch", "torchvision", "ray", "mlflow", "optuna", "torch-pruning", "fvcore", "scikit-learn", "numpy")
FOR_DEVELOPERS = ("dev", "docs")
OLDEST = (3, 11)
INSTALL = "`make install`, or pip install the package anew"


def python() -> Iterator[CheckResult]:
    """The interpreter, and whether `models` and `pruning` are ours and not a folder's of the same name."""
    old = sys.version_info < OLDEST
    found = f"{platform.python_version()} in {sys.prefix}, on {platform.platform()}"
    yield CheckResult(
        "python", "broken" if old else "ok", found, "install Python 3.11 or newer" if old else ""
    )
    ours = Path(__file__).parent.parent.parent
    for name in ("models", "pruning"):
        spec = find_spec(name)
        place = Path(spec.origin).parent.parent if spec and spec.origin else None
        if place != ours:
            told = f"found {f'in {place}' if place else 'nowhere'}, and not in {ours}"
            yield CheckResult(name, "broken", told, "run from another folder, and look at PYTHONPATH")


def packages() -> Iterator[CheckResult]:
    """Everything that is required, at the versions that are allowed."""
    wanted = _requirements()
    if not wanted:
        yield CheckResult("packages", "broken", f"{PROJECT} is not installed", INSTALL)
        return
    bad = [problem for one in wanted if _applies(one, "") and (problem := _problem(one))]
    told = "; ".join(bad) or ", ".join(f"{name} {version(name)}" for name in TOLD)
    yield CheckResult("packages", "broken" if bad else "ok", told, INSTALL if bad else "")


def extras() -> Iterator[CheckResult]:
    """The optional groups, but those for developers."""
    wanted = _requirements()
    given = metadata(PROJECT).get_all("Provides-Extra") or [] if wanted else []
    for extra in (name for name in given if name not in FOR_DEVELOPERS):
        own = [one for one in wanted if _applies(one, extra) and not _applies(one, "")]
        bad = [problem for one in own if (problem := _problem(one))]
        told = "; ".join(bad) or ", ".join(f"{one.name} {version(one.name)}" for one in own)
        do = f"pip install '{PROJECT}[{extra}]', if you want it" if bad else ""
        yield CheckResult(f"extra {extra}", "lacking" if bad else "ok", told, do)


def _requirements() -> list[Requirement]:
    """What the installed package asks for; nothing where it is not installed."""
    try:
        return [Requirement(line) for line in requires(PROJECT) or ()]
    except PackageNotFoundError:
        return []


def _applies(one: Requirement, extra: str) -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def _problem(one: Requirement) -> str:
    """Why a requirement is not met; empty where it is."""
    try:
        found = version(one.name)
    except PackageNotFoundError:
        return f"{one.name} is not installed"
    met = one.specifier.contains(found, prereleases=True)
    return "" if met else f"{one.name} is {found}, and {one.specifier} is wanted"


LITTLE_MEMORY = 2_000_000_000  # bytes
PAGES_PORT = 5000
DEEP_SECONDS = 120


def devices() -> Iterator[CheckResult]:
    """What trials run on."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield CheckResult("cores", "ok", f"{os.cpu_count()}, {usable} of them for this process")
    memory = psutil.virtual_memory()
    little = memory.available < LITTLE_MEMORY
    told = f"{format_gigabytes(memory.available)} free of {format_gigabytes(memory.total)}"
    do = "close other programs, or run one trial at a time: `--max-concurrent 1`" if little else ""
    yield CheckResult("memory", "lacking" if little else "ok", told, do)
    yield _cuda()


def _cuda() -> CheckResult:
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        named = ", ".join(f"{device.name} ({format_gigabytes(device.total_memory)})" for device in found)
        return CheckResult("cuda", "ok", f"{named}; {build}")
    if torch.version.cuda is None:
        why, do = "is built without CUDA", "install a CUDA build of torch to use a GPU; none is needed"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        why, do = "sees no device: CUDA_VISIBLE_DEVICES hides them", "unset it to use a GPU"
    else:
        why, do = "sees no device", "ask `nvidia-smi` whether there is a GPU with a driver; none is needed"
    return CheckResult("cuda", "lacking", f"{build} {why}", do)


def loopback() -> Iterator[CheckResult]:
    """Everything listens on 127.0.0.1, the pages on a port of their own."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        yield CheckResult("loopback", "broken", f"127.0.0.1: {error.strerror}", "bring the interface lo up")
        return
    yield CheckResult("loopback", "ok", "127.0.0.1 can be listened on and reached")
    try:
        socket.create_server(("127.0.0.1", PAGES_PORT)).close()
    except OSError:
        do = f"`orchestrate ui --port {PAGES_PORT + 1}`"
        yield CheckResult("pages", "lacking", f"another program listens on port {PAGES_PORT}", do)


def ray(*, deep: bool) -> Iterator[CheckResult]:
    """Whether Ray's programs are there and have a place for their sockets; `deep` starts them."""
    spec = find_spec("ray")
    folder = Path(spec.origin).parent / "core" / "src" / "ray" if spec and spec.origin else Path()
    programs = (folder / "gcs" / "gcs_server", folder / "raylet" / "raylet")
    missing = [program.name for program in programs if not os.access(program, os.X_OK)]
    if missing:
        yield CheckResult("ray", "broken", f"it lacks {' and '.join(missing)}", "`make install`")
        return
    try:
        check_temporary_folder()
    except OSError as error:
        yield CheckResult("ray", "broken", *str(error).split("; ", 1))
    else:
        yield (
            _started_ray() if deep else CheckResult("ray", "ok", "its programs are there; --deep starts them")
        )


def _started_ray() -> CheckResult:
    """In a process of its own, which may hang or crash without taking this one along."""
    code = "from orchestrator.execution.ray_check import seconds_to_answer as ask; print(f'{ask():.1f}')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEEP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return CheckResult(
            "ray", "broken", f"it did not answer in {DEEP_SECONDS} s", "try again with less running"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return CheckResult(
            "ray", "broken", f"it did not start: {redact_uri(last)[:200]}", "`ray start --head` says more"
        )
    return CheckResult("ray", "ok", f"started and answered in {done.stdout.strip()} s, and stopped")


LITTLE_ROOM, NO_ROOM = 2_000_000_000, 100_000_000  # bytes


def store(uri: str) -> Iterator[CheckResult]:
    """Where runs are kept, and whether it can be used; secrets of its address are not told."""
    folder = store_folder(uri)
    if folder is not None:
        yield _disk(folder)
    found = _health(uri)
    if found is None:
        yield CheckResult("store", "ok", f"{redact_uri(uri)}: there is none yet, the first sweep makes it")
        return
    if found.problem:
        yield CheckResult("store", "broken", f"{redact_uri(uri)}: {found.problem}", found.do)
    else:
        runs = "it answers" if found.runs is None else f"{found.runs} runs, schema up to date"
        yield CheckResult("store", "ok", f"{redact_uri(uri)}: {runs}")


def _health(uri: str) -> Health | None:
    """How the store is; None where there is none yet, or one that was never made to its end."""
    if not exists(uri):
        return None
    from orchestrator.tracking.connection import health, is_begun

    return health(uri) if is_begun(uri) else None


def _disk(folder: Path) -> CheckResult:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        told = f"{place} cannot be written: {error.strerror}"
        return CheckResult("disk", "broken", told, "set MLFLOW_TRACKING_URI, or run from another folder")
    state: State = "broken" if free < NO_ROOM else "lacking" if free < LITTLE_ROOM else "ok"
    return CheckResult(
        "disk", state, f"{format_gigabytes(free)} free at {place}", "" if state == "ok" else "make room"
    )


def data() -> Iterator[CheckResult]:
    """Every data set: there and whole, or what is missing."""
    from orchestrator.data.datasets import OWN, digits_file
    from orchestrator.data.loading import path, verify
    from orchestrator.errors import DataError

    try:
        digits_file()
        yield CheckResult("digits", "ok", "inside scikit-learn")
    except DataError as error:
        yield CheckResult("digits", "broken", *str(error).removeprefix("digits: ").split("; "))
    place = path()
    for name in (name for name, info in OWN.items() if info.source is not None):
        problems = verify(name, place) if place.is_dir() else [f"there is no folder {place}"]
        if problems:
            yield CheckResult(
                name, "lacking", problems[0], f"`orchestrate data fetch {name}`, if you want it"
            )
        else:
            yield CheckResult(name, "ok", f"whole, in {place}")


def plugins() -> Iterator[CheckResult]:
    """Every part of another package: whether it can be imported, and has a name of its own."""
    from extensions import package_of, problems
    from orchestrator.space.names import KINDS

    for kind in filter(lambda kind: kind.group, KINDS.values()):
        for entry, problem in problems([(kind.noun, kind.group)]):
            name = f"{kind.noun} {entry.name}"
            if problem:
                yield CheckResult(name, "lacking", *problem.rsplit("; ", 1))
            elif entry.name in kind.summaries:
                told = f"of {package_of(entry)} is left out: the name is taken"
                yield CheckResult(name, "lacking", told, "choose another name in its entry point")
            else:
                yield CheckResult(name, "ok", f"of {package_of(entry)}")


def run_checks(uri: str, *, deep: bool = False) -> Report:
    """Look at everything, with the store at `uri`; `deep` starts Ray and stops it."""
    machine = python(), packages(), devices(), store(uri), data()
    parts = *machine, loopback(), ray(deep=deep), extras(), plugins()
    return Report(tuple(chain.from_iterable(parts)))
