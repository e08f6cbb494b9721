"""`orchestrate doctor`: what it finds is so, it changes nothing, and it tells no secret."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest

from orchestrator import tracking
from orchestrator.doctor import CheckResult, Report, run_checks
from orchestrator.doctor.checks import data, devices, loopback, pending_results, ray, store
from orchestrator.doctor.installation import internals, packages, python
from orchestrator.errors import ClusterError
from orchestrator.execution.ray_patches import keep_signal_handlers
from orchestrator.storage.uri import default_uri, outbox_folder
from orchestrator.tracking import Tracker

ROOT = Path(__file__).parents[3]
METADATA = """\
Metadata-Version: 2.4
Name: pruning-orchestrator
Version: 9
Provides-Extra: dev
Provides-Extra: pictures
Requires-Dist: numpy>=1
Requires-Dist: torch>=99
Requires-Dist: no-such-package
Requires-Dist: nowhere-to-be-found; extra == "pictures"
Requires-Dist: not-for-users; extra == "dev"
"""


def command(*words: str, cwd: Path, path: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "doctor", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def by_name(found: Iterable[CheckResult]) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in found}


def test_here_a_sweep_would_run_and_nothing_is_written(tmp_path: Path) -> None:
    report = run_checks(default_uri(tmp_path))
    assert report.works
    found = by_name(report.results)
    assert {"python", "packages", "cores", "memory", "cuda", "disk", "store", "digits", "ray"} <= found.keys()
    assert "there is none yet" in found["store"].message
    assert all(finding.fix for finding in report.results if finding.state != "ok")
    assert list(report.lines())[-1] == "a sweep on digits will run here"
    assert list(tmp_path.iterdir()) == []


def test_one_broken_thing_is_enough() -> None:
    good, lacks = CheckResult("a", "ok", "x"), CheckResult("b", "lacking", "y", "do this")
    assert Report((good, lacks)).works
    broken = Report((good, lacks, CheckResult("c", "broken", "z", "do that")))
    assert not broken.works
    assert list(broken.lines()) == [
        "ok       a  x",
        "lacking  b  y",
        "            -> do this",
        "broken   c  z",
        "            -> do that",
        "a sweep will not run: see c",
    ]


# ---- the store


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with two runs, in a folder whose name needs quoting."""
    uri = default_uri(tmp_path_factory.mktemp("a store, 50% full é"))
    tracking.initialise(uri)
    for name in ("one", "two"):
        with Tracker(uri, "x").start("trial", name, tags={}):
            pass
    return uri


def test_a_store_is_counted(kept: str) -> None:
    found = by_name(store(kept))
    assert found["store"] == CheckResult("store", "ok", f"{kept}: 2 runs, schema up to date")
    assert found["disk"].state in ("ok", "lacking")


def test_a_store_of_another_version(kept: str) -> None:
    """Of an older MLflow, which can be brought up to date; and of one that this MLflow does not know."""
    file = kept.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as connection:
        (head,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    for revision, told, do in (
        ("451aebb31d03", f"wants {head}", "make a copy, then `mlflow db upgrade"),
        ("abc", "does not know", "use the MLflow that made it"),
    ):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
            connection.commit()
        before = Path(file).read_bytes()
        (_, found) = store(kept)
        assert found.state == "broken"
        assert found.message.startswith(f"{kept}: is of the schema {revision}, ")
        assert told in found.message
        assert do in found.fix
        assert Path(file).read_bytes() == before


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 1000)
    found = by_name(store(f"sqlite:///{tmp_path}/mlflow.db"))
    assert found["store"].state == "broken"
    assert "not a database" in found["store"].message


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = by_name(store(f"sqlite:///{tmp_path}/file/mlflow.db"))
    assert found["disk"].state == "broken"
    assert f"{tmp_path}/file cannot be written" in found["disk"].message
    assert "MLFLOW_TRACKING_URI" in found["disk"].fix


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:1/",
        "postgresql://user:secret@127.0.0.1:1/db",
        "nonsense://user:secret@host",
    ],
)
def test_a_store_that_is_away_is_told_without_its_secrets(uri: str) -> None:
    (found,) = store(uri)
    assert found.state == "broken"
    assert "***" in found.message
    assert "secret" not in f"{found}"
    assert "\n" not in found.message


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    assert list(pending_results(uri)) == []
    for name in ("a", "b.unreadable"):
        (outbox_folder(uri) / name).mkdir(parents=True)
    (found,) = pending_results(uri)
    assert found.state == "lacking"
    assert found.message == f"kept in {outbox_folder(uri)} and not readable here: b.unreadable"
    assert "`orchestrate deliver` of the version that has written them" in found.fix


# ---- data


def test_data_sets_that_are_there_and_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "none"))
    found = by_name(data())
    assert found["digits"].state == "ok"
    assert found["mnist"].state == "lacking"
    assert f"there is no folder {tmp_path / 'none'}" in found["mnist"].message
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    found = by_name(data())
    assert "is corrupt: 4 bytes" in found["mnist"].message
    assert "is missing" in found["cifar10"].message
    assert found["cifar10"].fix == "`orchestrate data fetch cifar10`, if you want it"


# ---- the machine


def test_a_taken_port() -> None:
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 5000))
            other.listen()
        except OSError:
            pass  # somebody else has it, which is the same to the doctor
        found = by_name(loopback())
    assert found["loopback"].state == "ok"
    assert found["pages"].fix == "`orchestrate ui --port 5001`"


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def cuda(version: str | None) -> CheckResult:
        monkeypatch.setattr(torch.version, "cuda", version)
        return by_name(devices())["cuda"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "is built without CUDA" in cuda(None).message
    assert "nvidia-smi" in cuda("13.0").fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in cuda("13.0").message
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = SimpleNamespace(name="A100", total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    assert cuda("13.0").message.startswith("A100 (80.0 GB), A100 (80.0 GB)")


def test_a_path_that_is_too_long_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(ray(deep=False))["ray"].state == "ok"
    place = tmp_path / ("long" * 20)
    place.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    (found,) = ray(deep=False)
    assert (found.state, found.fix) == ("broken", "set TMPDIR=/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "gone"))
    (found,) = ray(deep=False)
    assert (found.state, found.fix) == ("broken", "set TMPDIR to a folder that can be")


def test_folders_of_killed_sweeps_are_removed_if_that_is_asked_for(tmp_path: Path) -> None:
    dead = tmp_path / "orchestrate-12345678"
    dead.mkdir()
    (dead / "lock").touch()
    done = forked.orchestrate("doctor", "--clean", cwd=tmp_path, RAY_TMPDIR=str(tmp_path))
    assert f"removed {dead}" in done.stderr
    assert not dead.exists()
    again = forked.orchestrate("doctor", "--clean", cwd=tmp_path, RAY_TMPDIR=str(tmp_path))
    assert again.stderr == "0 temporary folders of killed sweeps removed\n"


# ---- what is installed


def test_a_library_whose_internals_have_moved_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.state for finding in internals()} == {"ok"}
    monkeypatch.delattr("ray._private.utils.set_sigterm_handler")
    monkeypatch.delattr("ray.tune.execution.class_cache.DEFAULT_ENV_VARS")
    found = by_name(internals())
    assert found["internals of ray"] == CheckResult(
        "internals of ray",
        "lacking",
        "not there: ray._private.utils.set_sigterm_handler",
        "install the ray of requirements.lock",
    )
    assert found["internals of tune"].message == "not there: ray.tune.execution.class_cache.DEFAULT_ENV_VARS"
    why = r"has no ray\._private\.utils\.set_sigterm_handler, which a sweep replaces"
    with pytest.raises(ClusterError, match=why), keep_signal_handlers():
        pytest.fail("it went on")


def test_everything_is_installed_here() -> None:
    assert {finding.state for finding in (*python(), *packages())} == {"ok"}


@pytest.mark.slow
def test_what_is_missing_or_too_old_is_named(tmp_path: Path) -> None:
    """Of a package that asks for more than there is, found first on the path."""
    info = tmp_path / "pruning_orchestrator-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    done = command("--json", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    assert report["works"] is False
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["packages"]["state"] == "broken"
    assert "no-such-package is not installed" in found["packages"]["found"]
    assert ", and >=99 is required" in found["packages"]["found"]
    assert "numpy" not in found["packages"]["found"]
    assert found["extra pictures"]["state"] == "lacking"
    assert found["extra pictures"]["do"] == "pip install 'pruning-orchestrator[pictures]', if you want it"
    assert "extra dev" not in found


@pytest.mark.slow
@pytest.mark.parametrize("has_data", [False, True])
def test_another_folder_of_the_name_models_is_in_nobody_s_way(tmp_path: Path, has_data: bool) -> None:
    """Also where data sets lie, whose files only torchvision can check, which our `models` imports."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('foreign')")
    if has_data:
        (tmp_path / "data").mkdir()
    done = command(cwd=tmp_path, ORCHESTRATE_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "foreign" not in done.stdout
    assert done.stdout.splitlines()[-1] == "a sweep on digits will run here"


# ---- Ray itself


@pytest.mark.slow
def test_ray_is_started_if_that_is_wanted(tmp_path: Path) -> None:
    done = forked.orchestrate("doctor", "--deep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("ok       ray "))
    assert "started and answered in" in line
    assert list(tmp_path.iterdir()) == []
