"""Python processes that are forked from one which has imported MLflow, Ray and torch already."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from pruning.user_code import plugins

ROOT = Path(__file__).parent.parent
CLI = "from orchestrator import cli; cli.main()"
context = get_context("forkserver")
context.set_forkserver_preload(
    ["orchestrator.execution.tune_experiment", "orchestrator.cli", "mlflow.store.tracking.sqlalchemy_store"]
)


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A child that calls the function; its exit code is that of a program which does nothing else."""
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def orchestrate(
    *words: str, cwd: Path, site: Path | None = None, seconds: float = 120.0, **environment: str
) -> CompletedProcess[str]:
    """What `orchestrate` prints, and its exit code; packages may lie in the folder `site`."""
    return python(CLI, *words, cwd=cwd, site=site, seconds=seconds, **environment)


def python(
    code: str, *words: str, cwd: Path, site: Path | None = None, seconds: float = 120.0, **environment: str
) -> CompletedProcess[str]:
    """What `python -c code words` prints, and its exit code; packages may lie in the folder `site`."""
    with TemporaryDirectory() as folder:
        streams = Path(folder) / "out", Path(folder) / "err"
        process = start_python(code, *words, cwd=cwd, streams=streams, site=site, **environment)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        texts = (stream.read_text(errors="replace") for stream in streams)
        return CompletedProcess(words, process.exitcode, *texts)


def start_python(
    code: str,
    *words: str,
    cwd: Path,
    streams: tuple[Path, Path],
    site: Path | None = None,
    **environment: str,
) -> BaseProcess:
    """The same under way; the files get what it prints."""
    search = [str(ROOT), *([str(site)] if site else [])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(search), **environment}
    return start(_run, code, words, cwd, variables, streams)


def _run(
    code: str, words: Sequence[str], cwd: Path, variables: Mapping[str, str], streams: tuple[Path, Path]
) -> None:

    os.chdir(cwd)
    os.environ.update(variables)  # and what the modules set as they were imported stays
    sys.path[:0] = ["", *(folder for folder in variables["PYTHONPATH"].split(os.pathsep))]
    plugins.clear_caches()  # packages are those of `site` now
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["orchestrate", *words]
    exec(code, {"__name__": "__main__"})
