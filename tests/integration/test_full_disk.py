"""A disk that fills up in mid-sweep, or is too small from the start; a small tmpfs is one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from small_sweep import (
    DENSE,
    LONGEST,
    NAME,
    SPACE,
    TRIALS,
    check_all_there,
    finished,
    sweeping,
    until,
)

from orchestrator.storage.outbox import Outbox
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import Tracker, initialise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MEGABYTE = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, *, but: int) -> None:
    """Take all of a disk but so many bytes."""
    with (disk / "ballast").open("wb") as file:
        while (room := shutil.disk_usage(disk).free - but) > 0:
            file.write(bytes(min(room, MEGABYTE)))
            file.flush()


@pytest.mark.long
def test_a_disk_that_fills_up_in_mid_sweep(disk: Path) -> None:
    uri, log = default_uri(disk), disk / "log.txt"
    initialise(uri)  # before two processes look at it
    with sweeping(disk) as process:
        until(lambda: len(finished(uri)) >= 4, process)
        fill(disk, but=150_000)  # room for a run or two
        assert process.wait(LONGEST) == 4, log.read_text()
    said = log.read_text().splitlines()[-1]
    assert said.startswith("error: no room is left"), said
    assert f"{disk / 'mlruns'} has " in said
    assert "need about" in said
    assert "make room, and the same command carries on" in said
    before = {row.tags["key"]: row.run_id for row in finished(uri)}
    waiting = {parcel.start.point for parcel in Outbox(outbox_folder(uri)).pending_runs()}
    assert 4 <= len(before) < TRIALS + DENSE
    assert Tracker(uri, "small").search("attributes.status = 'FAILED' and tags.point LIKE '_%'") == []

    subprocess.run(["mount", "-o", "remount,size=128m", str(disk)], check=True)
    with sweeping(disk) as process:
        assert process.wait(LONGEST) == 0, log.read_text()
    check_all_there(uri)
    after = {row.tags["key"]: row for row in finished(uri)}
    assert {key: after[key].run_id for key in before} == before  # nothing finished was run again
    assert waiting <= after.keys()


def test_a_disk_that_is_too_small_is_refused_before_anything_runs(disk: Path) -> None:
    fill(disk, but=2 * MEGABYTE)  # for the empty database, and little else
    (disk / f"{NAME}.yaml").write_text(SPACE)
    words, state = ("sweep", "--space", f"{NAME}.yaml"), str(disk / "state")
    done = forked.orchestrate(*words, cwd=disk, seconds=LONGEST, ORCHESTRATE_STATE_DIR=state)
    assert done.returncode == 4
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"error: {disk / 'mlruns'} has ")
    assert f"and the {TRIALS + DENSE} runs that are left need about 2." in said
    tracker = Tracker(default_uri(disk), "small")
    assert tracker.search("tags.kind LIKE '_%'", everywhere=True) == []
