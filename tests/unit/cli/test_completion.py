"""TAB in a shell: the protocol that typer's scripts speak, with the command as it is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import in_process
import pytest
from import_times import imported

from orchestrator.space import names

ROOT = Path(__file__).parents[3]
SHELLS = ("bash", "zsh", "fish")
CASES = {
    "sweep --space quick": ["quickstart"],
    "plan --space ti": ["tiny.yaml"],
    "plan --space sub/": ["sub/other.yml"],
    "list cr": ["criteria"],
    "show median": ["median"],
    "show rew": ["rewind", "rewinding-cifar10", "rewinding"],
    "sweep --set tec": ["technique="],
    "sweep --set train.l": ["train.lr=", "train.label_smoothing="],
    "sweep --set rewind.": ["rewind.on=", "rewind.to="],
    "show torchvision.N": ["torchvision.NAME"],
    "show torchvision.alex": ["torchvision.alexnet"],
    "show torchvision.sq": ["torchvision.squeezenet1_0", "torchvision.squeezenet1_1"],
    "show torchvision.st": ["torchvision.stl10"],
    "data fetch torchvision.s": ["torchvision.svhn", "torchvision.stl10"],
    "sweep --stop pq": ["pq_index"],
    "data fetch fash": ["fashion-mnist"],
    "data verify cif": ["cifar10", "cifar100"],
    "compare my-": ["my-space"],
    "status my-": ["my-space"],
    "sweep --device c": ["cpu", "cuda"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place where somebody works: two space files, one in a folder, and a store with one sweep."""
    for file in ("tiny.yaml", "notes.txt", "sub/other.yml", "sub/other.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "mlruns" / "artifacts" / "my-space").mkdir(parents=True)
    return tmp_path


def typed(shell: str, line: str) -> dict[str, str]:
    """Return the environment by which a shell asks about a line typed so far."""
    words = ["orchestrate", *line.split(" ")]
    asked = {
        "bash": {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join(words)},
        "fish": {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    return asked | {"_ORCHESTRATE_COMPLETE": f"complete_{shell}"}


def typed_in_a_shell(shell: str, line: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own; `-c` stands in for the installed script."""
    code = "import sys; sys.argv = ['orchestrate']; from orchestrator.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **typed(shell, line), **extra},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(shell: str, line: str, cwd: Path) -> str:
    """What the command prints for it."""
    with patch.dict(os.environ, typed(shell, line)):
        done = in_process.orchestrate(cwd=cwd)
    assert done.stderr == ""
    return done.stdout


def offered(shell: str, line: str, cwd: Path) -> list[str]:
    text = ask(shell, line, cwd).removesuffix("\n")
    if shell == "zsh":
        text = text.removeprefix("_arguments '*: :((").removesuffix("))'")
        return [row.removeprefix('"').partition('"')[0] for row in text.splitlines()]
    return [row.partition("\t")[0] for row in text.splitlines()]


@pytest.mark.parametrize("line", CASES)
def test_bash_is_offered_what_fits(line: str, folder: Path) -> None:
    assert offered("bash", line, folder) == CASES[line]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize("line", ["sweep --space quick", "show rew", "sweep --set tec", "status my-"])
def test_the_other_shells_are_too(shell: str, line: str, folder: Path) -> None:
    assert offered(shell, line, folder) == CASES[line]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_they_are_told_what_a_name_is_and_the_values_of_an_axis(shell: str, folder: Path) -> None:
    assert "connection sensitivity" in ask(shell, "show sni", folder)
    assert offered(shell, "sweep --set technique=we", folder) == ["technique=weight"]
    assert offered(shell, "sweep --set technique=weight,n", folder) == ["technique=weight,neuron"]
    assert offered(shell, "sweep --set train.lr=0", folder) in (["_files"], [])


def test_everything_is_offered_where_nothing_is_typed(folder: Path) -> None:
    assert offered("bash", "list ", folder) == list(names.KINDS)
    assert offered("bash", "sweep --stop ", folder) == [*names.names("stops"), "none"]
    found = offered("bash", "sweep --space ", folder)
    assert found == [*names.names("spaces"), "mlruns/", "sub/", "tiny.yaml"]
    assert offered("bash", "sweep --set ", folder) == [f"{key}=" for key in names.settable_keys()]
    every = {name for kind in names.KINDS for name in names.names(kind)}
    assert sorted(offered("bash", "show ", folder)) == sorted(every)


def test_where_there_is_no_store_no_sweep_is_offered(tmp_path: Path) -> None:
    assert offered("bash", "status ", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_name_a_terminal_would_obey_is_not_offered(tmp_path: Path) -> None:
    for name in ("plain.yaml", "a\x1b]0;owned\x07.yaml", "b\n.yaml", "c\u202e.yaml"):
        (tmp_path / name).touch()
    assert offered("bash", "sweep --space ", tmp_path) == [*names.names("spaces"), "plain.yaml"]


def test_it_loads_little(folder: Path) -> None:
    """Its time is a benchmark's to tell: it is the importing, of 290 modules when this was written."""
    loaded = imported(typed_in_a_shell("bash", "show ", folder, PYTHONPROFILEIMPORTTIME="1").stderr)
    assert "orchestrator.cli" in loaded
    assert len(loaded) < 370
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "numpy", "ray", "mlflow", "rich"}


def test_a_real_bash_completes(folder: Path) -> None:
    """The script that `--show-completion bash` prints, in bash itself, as readline would call it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    source = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'orchestrate'; from orchestrator.cli import main; main()",
        ],
        env={**os.environ, "_ORCHESTRATE_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    script = folder / "orchestrate"
    main = "import sys; sys.argv[0] = 'orchestrate'; from orchestrator.cli import main; main()"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(main)} "$@"\n')
    script.chmod(0o755)
    typed = f"""{source}
COMP_WORDS=(orchestrate sweep --space weight); COMP_CWORD=3
_orchestrate_completion {shlex.quote(str(script))}
echo "${{COMPREPLY[@]}}"
complete -p orchestrate"""
    done = subprocess.run(
        [bash, "--norc", "-c", typed],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "weight-vs-unit",
        "complete -o default -F _orchestrate_completion orchestrate",
    ]
