"""Temporary files of a sweep: for its user alone, and gone with its process, however that ends."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.execution.ray_cleanup import (
    LONGEST_SOCKET,
    check_temporary_folder,
    remove_dead,
    session_folder,
)
from orchestrator.system.signals import SignalHandler

NOBODY = 65534
HOLDS = """
import sys
from orchestrator.execution.ray_cleanup import session_folder
from orchestrator.system.signals import SignalHandler
with session_folder(SignalHandler()) as folder:
    (folder / "file").write_text("content")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has such a folder until its input ends, and the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDS], text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_it_is_for_its_user_alone_and_gone_afterwards(place: Path) -> None:
    before = os.umask(0o000)
    try:
        with session_folder(SignalHandler()) as folder:
            assert folder.parent == place
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert list(place.iterdir()) == []


def test_that_of_a_killed_process_is_removed_by_the_next(place: Path) -> None:
    with another_process() as (process, folder):
        process.kill()
        process.wait()
        assert (folder / "file").read_text() == "content"
    with session_folder(SignalHandler()) as own:
        assert list(place.iterdir()) == [own]


def test_that_of_a_living_process_stays(place: Path) -> None:
    with another_process() as (process, folder):
        assert remove_dead() == []
        with session_folder(SignalHandler()):
            pass
        assert (folder / "file").read_text() == "content"
        process.communicate("")
    assert process.returncode == 0
    assert list(place.iterdir()) == []


def test_what_is_not_ours_is_left_alone(place: Path) -> None:
    strange = place / "orchestrate-of-somebody"  # of that name, and without a lock
    strange.mkdir()
    (place / "orchestrate-link").symlink_to(strange)
    (place / "orchestrate-file").write_text("a file")
    fresh = place / ".orchestrate-begun"  # another process is about to lock it
    fresh.mkdir()
    assert remove_dead() == []
    assert len(list(place.iterdir())) == 4
    os.utime(fresh, (0, 0))
    assert remove_dead() == [fresh]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder of another user's")
def test_that_of_another_user_is_left_alone(place: Path) -> None:
    other = place / "orchestrate-12345678"
    other.mkdir()
    (other / "lock").touch()
    os.chown(other, NOBODY, NOBODY)
    assert remove_dead() == []
    os.chown(other, 0, 0)
    assert remove_dead() == [other]


def test_a_path_is_as_long_as_sockets_allow_and_no_longer(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = LONGEST_SOCKET - len("/orchestrate-12345678/r/s/sockets/plasma_store")
    for extra, fits in ((0, True), (1, False)):
        folder = Path("/tmp", "x" * (longest - len("/tmp/") + extra))
        folder.mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        try:
            if fits:
                check_temporary_folder()
            else:
                with pytest.raises(OSError, match=r"too long for Ray's sockets; set TMPDIR=/tmp$"):
                    check_temporary_folder()
        finally:
            folder.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", str(place / "gone"))
    with pytest.raises(OSError, match="set TMPDIR to a folder that can be"):
        check_temporary_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")
def test_shared_memory_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "orchestrator.execution.ray_cleanup"
    check = f"from {module} import check_temporary_folder as check; check()"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    mounts = f"mount -t tmpfs -o ro none /dev/shm && {sys.executable} -c '{check}'"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mounts], capture_output=True, text=True, timeout=60, check=False
    )
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OSError: /dev/shm cannot be written, and Ray shares memory there; mount it")
