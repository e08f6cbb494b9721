"""The command line as a person meets it: exit codes, one line for a mistake, and nothing written for it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import forked
import psutil
import pytest
from import_times import imported
from in_process import orchestrate

from orchestrator import cli
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker

ROOT = Path(__file__).parents[3]
TINY = """\
version: 1
about: Two techniques on a small network.
axes:
  model: ["mlp(widths=[16])"]
  dataset: [digits]
  technique: [weight, neuron]
  amount: [50%, 90%]
train: {epochs: 1}
"""
Run = Callable[..., tuple[int, str, str]]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *words]


def started(*words: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of a command where tiny.yaml lies; in this process, which is fast."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_DEBUG", "")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrate", *words])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(raised.value.code, int)
        return raised.value.code, out, err

    return call


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- help


def test_help_names_the_commands_and_loads_little(tmp_path: Path) -> None:
    """Its time is a benchmark's to tell: it is the importing, of 370 modules when this was written."""
    done = started("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    for name in ("plan", "sweep", "compare", "list", "data", "ui"):
        assert name in done.stdout
    loaded = imported(done.stderr)
    assert len(loaded) < 450
    assert "typer.rich_utils" in loaded


@pytest.mark.parametrize("words", [["--help"], ["sweep", "--help"], ["list", "criteria", "--help"]])
def test_help_loads_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    done = started(*words, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    tops = {name.partition(".")[0] for name in imported(done.stderr)}
    assert "typer" in tops
    assert not tops & {"torch", "numpy", "ray", "mlflow", "optuna", "pandas", "sklearn", "matplotlib"}


@pytest.mark.parametrize("words", [[], ["data"]])
def test_without_a_command_there_is_help(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert code in (0, 2)
    assert "Usage" in out + err


@pytest.mark.parametrize(
    "kind", ["spaces", "models", "datasets", "techniques", "criteria", "schedules", "recoveries"]
)
def test_what_there_is_is_listed_with_a_line_each(run: Run, kind: str) -> None:
    code, out, err = run("list", kind)
    assert (code, err) == (0, "")
    for line in out.splitlines():
        name, about = line.split(maxsplit=1)
        assert name
        assert about
    known = {
        "spaces": "quickstart",
        "models": "mlp",
        "datasets": "digits",
        "techniques": "neuron",
        "criteria": "snip",
        "schedules": "pq_index",
        "recoveries": "rewind",
    }
    assert known[kind] in out.split()


# ---- mistakes

BAD_VALUES: dict[str, str] = {
    "amount=-0.1": "-0.1 is no amount in [0, 1]",
    "amount=1.01": "1.01 is no amount in [0, 1]",
    "amount=90": "0.9 or 90%?",
    "amount=nan": "'nan' is no amount",
    "amount=abc": "'abc' is no amount",
    "amount=true": "True is no amount",
    "amount=101%": "no amount",
    "amount={mac: 50%}": "or is the quantity macs meant?",
    "amount={Bytes: 100kB}": "or is the quantity bytes meant?",
    "amount={macs: 50%, parms: 50%}": "unknown quantity 'parms'; did you mean parameters?",
    "model=mpl": "unknown model 'mpl'; did you mean mlp?",
    "model=mlp(width=[3])": "did you mean widths",
    "dataset=digit": "unknown dataset 'digit'; did you mean digits?",
    "technique=nueron": "unknown technique 'nueron'; did you mean neuron?",
    "criterion=magnitud": "did you mean magnitude?",
    "schedule=iterativ": "did you mean iterative?",
    "schedule=iterative(round=3)": "did you mean rounds?",
    "recover=finetun": "did you mean finetune",
    "prepare=lasso": "did you mean group_lasso",
    "distill=soft": "did you mean soft_labels",
    "scope=globl": "did you mean global",
    "when=befor": "'befor'",
    "amuont=0.5": "unknown key 'amuont'; did you mean amount",
    "train.epoch=3": "did you mean train.epochs",
    "batch_size=0": "batch_size[0] is 0",
    "batch_size=1.5": "1.5",
    "seed=a": "seed[0] is 'a'",
    "seed=-1": "seed[0] is -1",
    "train.lr=nan": "train.lr",
    "train.epochs=0": "train.epochs is 0",
    "train.momentum=1": "train.momentum is 1",
    "protect=outptu": "no layer 'outptu'",
    "amount": "write key=value",
    "amount=": "no value is given",
    "seed=0..999999999": "1000000000 values",
}


@pytest.mark.parametrize(
    ("verb", "given"), [("plan", "amount=90"), *(("sweep", given) for given in BAD_VALUES)]
)
def test_a_bad_value_is_one_line_and_nothing_is_written(
    run: Run, tmp_path: Path, verb: str, given: str
) -> None:
    code, out, err = run(verb, "--space", "tiny.yaml", "--set", given)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert BAD_VALUES[given] in err
    assert files(tmp_path) == ["tiny.yaml"]


MANY = "amount: [0.5]\n  seed: [0..999]\n  batch_size: [1..1000]\n  train.epochs: [1..1000]"
BAD_FILES = {
    "a billion points": (
        TINY.replace("amount: [50%, 90%]", MANY),
        "2 x 1000 x 1000 x 1000 = 2,000,000,000 points; at most 1,000,000",
    ),
    "unknown key": (TINY + "axis: {}\n", "bad.yaml:9: unknown key 'axis'; did you mean axes?"),
    "unknown axis": (
        TINY.replace("amount:", "amounts:"),
        "bad.yaml:7: unknown key 'amounts'; did you mean amount",
    ),
    "key twice": (TINY + "train: {epochs: 2}\n", "bad.yaml:9: 'train' is given twice, first on line 8"),
    "axis twice": (
        TINY.replace("  amount:", "  amount: [0.1]\n  amount:"),
        "bad.yaml:8: 'amount' is given twice, first on line 7",
    ),
    "python object": (TINY + "about: !!python/object/apply:os.system [touch pwned]\n", "bad.yaml:9: "),
    "python name": (
        TINY.replace("[50%, 90%]", "!!python/name:os.system"),
        "!!python/name:os.system is not read; give plain numbers",
    ),
    "alias bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
            for before, name in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "that is the limit",
    ),
    "deep": ("a: " + "[" * 100_000, "levels deep; that is the limit"),
    "long": ("# " + "x" * 300_000, "256 KiB"),
    "no YAML": ("axes: [", "this is no YAML"),
    "empty": ("", "a space is a mapping"),
    "a list": ("[1, 2]", "a space is a mapping"),
    "no amount": (TINY.replace("  amount: [50%, 90%]\n", ""), "axes.amount is missing"),
    "bytes": ("\x00", "the control character \\x00"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_and_nothing_is_built(run: Run, tmp_path: Path, case: str) -> None:
    text, message = BAD_FILES[case]
    (tmp_path / "bad.yaml").write_text(text)
    before = time.process_time()
    code, out, err = run("sweep", "--space", "bad.yaml")
    assert time.process_time() - before < 30  # a tenth of one on an idle core
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
    assert len(err) < 1000
    assert files(tmp_path) == ["bad.yaml", "tiny.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--space", "quickstrat"], "unknown space 'quickstrat'; did you mean quickstart?"),
        (["plan", "--space", "nosuch.yaml"], "nosuch.yaml: there is no such file; named spaces are"),
        (["list", "critera"], "did you mean criteria?"),
        (["data", "verify", "digit"], "did you mean digits?"),
        (["plan"], "no space is named; give a file or one of `orchestrate list spaces`"),
        (["sweep", "tiny.yaml", "--space", "quickstart"], "tiny.yaml and --space quickstart are two spaces"),
        (["sweep", "--spac", "tiny.yaml"], "See `orchestrate sweep --help`."),
        (["data", "chek"], "See `orchestrate data --help`."),
        (["plan", "tiny.yaml", "--set", "seed=0-4"], "'0-4' is no number; a range is written 0..4"),
        (["plan", "tiny.yaml", "--set", "technique=lamp"], "lamp is a criterion and no technique"),
    ],
)
def test_unknown_names_come_with_their_nearest(
    run: Run, tmp_path: Path, words: list[str], message: str
) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert files(tmp_path) == ["tiny.yaml"]


def test_a_space_is_named_with_and_without_its_option(run: Run) -> None:
    plans = [run("plan", *words, "--json") for words in (["tiny.yaml"], ["--space", "tiny.yaml"])]
    assert [code for code, _, _ in plans] == [0, 0]
    counts = [[json.loads(out)[key] for key in ("space", "trials", "train_flops")] for _, out, _ in plans]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "words",
    [
        ["sweep"],
        ["swep", "--space", "tiny.yaml"],
        ["sweep", "--space", "tiny.yaml", "--device", "gpu"],
        ["sweep", "--space", "tiny.yaml", "--max-concurrent", "0"],
        ["sweep", "--space", "tiny.yaml", "--gpus-per-trial", "0"],
        ["ui", "--port", "0"],
    ],
)
def test_a_bad_command_line_is_2_too(run: Run, tmp_path: Path, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert files(tmp_path) == ["tiny.yaml"]


def test_a_mistake_ends_a_process_of_its_own_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = forked.orchestrate("sweep", "--space", "tiny.yaml", "--set", "amount=90", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "0.9 or 90%?" in done.stderr
    assert files(tmp_path) == ["tiny.yaml"]


# ---- what is not there


def test_a_missing_data_set_names_file_folder_and_a_way_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(empty))
    code, out, err = run("sweep", "--space", "tiny.yaml", "--set", "dataset=mnist")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert f"{empty}" in err
    assert "train-images-idx3-ubyte" in err
    assert "`orchestrate data fetch mnist`" in err
    assert "'digits'" in err
    assert files(empty) == []
    assert run("data", "verify", "mnist")[0] == 4


def test_cuda_without_a_gpu(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for verb in ("plan", "sweep"):
        code, out, err = run(verb, "--space", "tiny.yaml", "--device", "cuda")
        assert (code, out, err.count("\n")) == (4, "", 1)
        assert "--device cpu" in err
    assert files(tmp_path) == ["tiny.yaml"]


def test_a_plan_for_the_gpu_of_another_machine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("plan", "--space", "tiny.yaml", "--device", "cuda", "--calibrate", "times.json")
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "times.json: it is no file of `make gpu-check`" in err
    content = {"kind": "gpu-check", "version": 1, "device": "NVIDIA H100", "gpu_bytes": None, "steps": []}
    (tmp_path / "times.json").write_text(json.dumps(content))
    code, out, _ = run(*words, "--gpus-per-trial", "0.5")
    assert code == 0
    assert "2 at a time" in out
    assert "this machine has none: timed on the CPU" in out


def test_comparing_without_a_store_makes_none(run: Run, tmp_path: Path) -> None:
    code, out, err = run("compare", "tiny")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert str(tmp_path / "mlruns") in err
    assert files(tmp_path) == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (["sensitivity", "tiny"], "svg"),
        (["figure", "tiny"], "pdf"),
        (["report", "tiny"], "html"),
        (["bundle", "tiny"], "zip"),
        (["data", "check", "digits"], "png"),
    ],
)
@pytest.mark.parametrize("folder", ["missing", "tiny.yaml"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    run: Run, tmp_path: Path, words: list[str], ending: str, folder: str
) -> None:
    """There is no store to read, and the data set has broken no rule: the file is all that is refused."""
    option = "--sheet" if words[0] == "data" else "--out"
    path = tmp_path / folder / f"file.{ending}"
    code, out, err = run(*words, option, str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{option} {path}: " in err
    assert "name a file that can be written" in err
    assert files(tmp_path) == ["tiny.yaml"]


def test_a_store_that_cannot_be_used(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note.txt").write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/note.txt/mlflow.db")
    code, out, err = run("sweep", "--space", "tiny.yaml")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "MLFLOW_TRACKING_URI" in err


# ---- plans


def test_a_plan_names_the_data_sets_that_are_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "nothing"))
    code, out, _ = run("plan", "--space", "tiny.yaml", "--set", "dataset=digits,mnist", "--device", "cpu")
    assert code == 0
    line = out.splitlines()[1]  # before all numbers
    assert line.startswith("missing data ")
    assert line.split()[2] == "mnist:"
    assert "orchestrate data fetch mnist" in line


def test_a_plan_as_json(run: Run, tmp_path: Path) -> None:
    words = ["--set", "batch_size=64,2000,5000", "--set", "amount=0.5", "--json", "--device", "cpu"]
    code, out, err = run("plan", "--space", "tiny.yaml", *words)
    assert (code, err) == (0, "")
    plan = json.loads(out, parse_constant=no_constant)
    # Two techniques at two batch sizes: 2000 and 5000 are both all of the 1257 images.
    assert (plan["space"], plan["trials"], plan["dense_trainings"], plan["reused"]) == ("tiny", 4, 2, 0)
    (excluded,) = plan["excluded"]
    assert excluded["count"] == 2
    assert "1257" in excluded["reason"]
    # 2 per MAC of 64 x 16 + 16 x 10, three passes but for the images' gradient; two epochs in all.
    assert plan["train_flops"] == 2 * 1257 * 2 * (3 * (1024 + 160) - 1024)
    assert plan["estimated_seconds"] > 0
    assert plan["disk_bytes"] > 2 * 4 * 1184
    assert plan["missing_data"] == {}
    assert files(tmp_path) == ["tiny.yaml"]


def test_a_plan_for_a_reader(run: Run) -> None:
    code, out, _ = run("plan", "--space", "tiny.yaml", "--device", "cpu")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "tiny: Two techniques on a small network."
    assert lines[1].split() == ["trials", "4:", "4", "to", "run,", "0", "in", "the", "store"]
    assert [line.split()[0] for line in lines[2:]] == ["dense", "time", "by", "training", "disk"]


def no_constant(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


# ---- sweeps


@dataclass(frozen=True)
class Ended:
    """How a command ended, and whether it had a Ray among its children."""

    code: int
    out: str
    err: str
    ray: bool


def watched(*words: str, cwd: Path) -> Ended:
    streams = cwd / "out.txt", cwd / "err.txt"
    for stream in streams:
        stream.unlink(missing_ok=True)
    process = forked.start_python(forked.CLI, *words, cwd=cwd, streams=streams)
    ray = False
    while process.is_alive():
        ray |= has_ray(process.pid)
        process.join(0.1)
    return Ended(process.exitcode, *(stream.read_text() for stream in streams), ray)


def has_ray(pid: int) -> bool:
    try:
        names = [child.name() for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    return any(word in name for name in names for word in ("raylet", "gcs_server"))


def runs(folder: Path) -> list[RunRecord]:
    return Tracker(default_uri(folder), "tiny").search("")


def sweep(folder: Path, *sets: str) -> Ended:
    words = [word for item in sets for word in ("--set", item)]
    return watched("sweep", "--space", "tiny.yaml", "--device", "cpu", *words, cwd=folder)


def as_json(folder: Path, *words: str) -> Any:
    done = orchestrate(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=no_constant)


@pytest.mark.slow
def test_a_sweep_again_and_with_one_amount_more(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    first = sweep(tmp_path)
    assert first.code == 0, first.err
    assert first.ray
    assert "tiny: 4 trials, 5 runs made, 0 trials reused" in first.out
    for word in ("weight", "neuron", "50%", "90%"):
        assert word in first.out
    for word, start in {"picture": b"\x89PNG", "report": b"<!DOCTYPE html>"}.items():
        (line,) = (line for line in first.out.splitlines() if line.startswith(f"{word}: "))
        file = Path(line.removeprefix(f"{word}: ").strip())
        assert file.read_bytes().lstrip().startswith(start)
        assert file.is_relative_to(tmp_path / "mlruns" / "artifacts")
    (made,) = (row for row in runs(tmp_path) if row.tags["kind"] == "sweep")
    assert made.tags["command"] == "orchestrate sweep --space tiny.yaml --device cpu"
    before = {row.run_id: row.end_ms for row in runs(tmp_path)}
    assert len(before) == 1 + 1 + 4

    second = sweep(tmp_path)
    assert (second.code, second.ray, second.err) == (0, False, "")
    assert "tiny: nothing to do: all 4 trials are in the store" in second.out
    assert second.out.splitlines()[:7] == first.out.splitlines()[:7]
    assert {row.run_id: row.end_ms for row in runs(tmp_path)} == before
    planned = as_json(tmp_path, "plan", "--space", "tiny.yaml", "--device", "cpu")
    assert (planned["reused"], planned["trials_to_run"], planned["dense_to_run"]) == (4, 0, 0)
    assert (planned["train_flops"], planned["disk_bytes"], planned["estimated_seconds"]) == (0, 0, 0)

    third = sweep(tmp_path, "amount=50%,90%,0")
    assert third.code == 0, third.err
    assert "tiny: 6 trials, 2 runs made, 4 trials reused" in third.out
    new = [row for row in runs(tmp_path) if row.run_id not in before]
    assert sorted(row.tags["kind"] for row in new) == ["sweep", "trial", "trial"]
    assert {row.params["amount"] for row in new if row.tags["kind"] == "trial"} == {"0.0"}
    check_comparison(tmp_path)


def check_comparison(folder: Path) -> None:
    records = as_json(folder, "compare", "tiny")
    cells = {(record["technique"], record["amount"]): record for record in records}
    assert cells.keys() == {(t, a) for t in ("weight", "neuron") for a in (0.0, 0.5, 0.9)}
    assert all((r["seeds"], r["accuracy_ci95"], r["epochs"]) == (1, None, 1.0) for r in records)
    # What nothing was taken from is the dense network, whatever the technique.
    assert cells["weight", 0.0]["accuracy"] == cells["neuron", 0.0]["accuracy"]
    assert cells["weight", 0.5]["sparsity"] == cells["neuron", 0.5]["sparsity"] == 0.5
    assert cells["weight", 0.5]["macs_effective"] == (1024 + 160) / 2
    # Compared with itself, or with a part of it, a sweep is what it is.
    assert as_json(folder, "compare", "tiny", "tiny") == records

    text = orchestrate("compare", "tiny", "--csv", cwd=folder).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["technique"], float(row["amount"])) for row in rows] == list(cells)
    for row, record in zip(rows, records, strict=True):
        assert row.keys() == record.keys()
        assert float(row["accuracy"]) == record["accuracy"]
        assert row["accuracy_ci95"] == ""
    table = orchestrate("compare", "tiny", cwd=folder)
    assert (table.returncode, table.stderr) == (0, "")
    assert "mlp(widths=[16]) on digits, batch 64" in table.stdout
    unknown = orchestrate("compare", "tyni", cwd=folder)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (4, 1)
    assert "did you mean tiny?" in unknown.stderr


@pytest.mark.slow
def test_a_rate_at_which_nothing_can_be_learnt(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    sets = ["train.lr=1e30,0.1", "train.optimizer=sgd", "amount=0.5"]
    first = sweep(tmp_path, *sets)
    assert first.code == 3, first.err
    assert "Traceback" not in first.err
    failed = [line for line in first.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1 + 2
    assert all("DivergedError: the loss is no longer finite in epoch 1 of 1" in line for line in failed)
    assert sum("its dense network failed" in line for line in failed) == 2
    (row,) = (row for row in runs(tmp_path) if row.status == "FAILED")
    assert row.tags["kind"] == "dense"
    assert row.tags["diverged"] == "true"
    assert "the loss is no longer finite" in row.tags["reason"]
    assert not [name for name in row.metrics if name.startswith("final/")]

    # What can be learnt is not held up by it.
    assert [record["train.lr"] for record in as_json(tmp_path, "compare", "tiny")] == [0.1, 0.1]
    assert len(runs(tmp_path)) == 1 + 1 + 3  # the sweep, the failed network, another with two trials

    # A divergence is a result: it is told again, and not computed again.
    second = sweep(tmp_path, *sets)
    assert (second.code, second.ray) == (3, False)
    assert "nothing to do" in second.out
    assert "2 of them failed before" in second.out
    assert len(runs(tmp_path)) == 5
