"""A package that cannot be imported, or describes itself wrongly: a warning names it, and all else works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import forked
import pytest
from python_process import python

from orchestrator.space.names import KINDS, names

ROOT = Path(__file__).parents[3]
GROUPS = (
    "models.builder",
    "orchestrator.dataset",
    *(kind.group for kind in KINDS.values() if kind.group.startswith("pruning.")),
)
# What a package's module does -> (its code, its entry points' target, what is said of it)
FAULTS = {
    "it raises": ("raise RuntimeError('one\\ntwo')", "faulty:part", "RuntimeError: one two"),
    "it exits": ("raise SystemExit(7)", "faulty:part", "SystemExit: 7"),
    "no Exception": (
        "class Odd(BaseException): pass\nraise Odd('odd')",
        "faulty:part",
        "Odd: odd",
    ),
    "a missing module": ("import what_nobody_has", "faulty:part", "No module named 'what_nobody_has'"),
    "no such module": ("", "nobody.has.this:part", "No module named 'nobody'"),
    "no such name": ("", "faulty:part", "module 'faulty' has no attribute 'part'"),
    "no Python": ("def (", "faulty:part", "SyntaxError: invalid syntax"),
    "no such form": ("", "3 x:y!", "its entry point is '3 x:y!', and not MODULE:NAME"),
    "a terminal's command": ("raise OSError('\\x1b]0;x\\x07')", "faulty:part", r"OSError: \x1b]0;x\x07"),
    "a number": ("part = 3", "faulty:part", "'faulty:part' is no such part as its entry points say"),
}
ASK_ALL = """
import json, sys
from orchestrator.space.catalog import KINDS, items
from orchestrator.errors import OrchestrateError
from orchestrator.space.space import load_space
found = {kind: [item.name for item in items(kind)] for kind in KINDS}
said = {}
for word in json.loads(sys.argv[1]):
    try:
        load_space("quickstart", [word])
    except OrchestrateError as error:
        said[word] = [str(error), error.exit_code]
print(json.dumps([found, said]))
"""
AXES = {"model", "dataset", "criterion", "granularity", "schedule", "recover", "prepare", "distill"}


def install(folder: Path, code: str, target: str, *, name: str = "faulty") -> Path:
    """A folder for sys.path with a package that names a part called as itself in every group."""
    site = folder / "site"
    info = site / f"{name}_parts-1.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code + "\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}-parts\nVersion: 1\n")
    target = target.replace("faulty", name)
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{name} = {target}\n" for group in GROUPS))
    return site


def orchestrate(site: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forked.orchestrate(*words, cwd=site.parent, site=site, **environment)


def test_one_warning_for_each_and_an_error_where_one_is_asked_for(tmp_path: Path) -> None:
    for number, (code, target, _) in enumerate(FAULTS.values()):
        site = install(tmp_path, code, target, name=f"faulty{number}")
    asked = [f"{axis}=faulty{number}" for axis in sorted(AXES) for number in range(len(FAULTS))]
    done = forked.python(ASK_ALL, json.dumps(asked), cwd=site.parent, site=site)
    assert done.returncode == 0, done.stderr
    reasons = {f"faulty{number}": reason for number, (_, _, reason) in enumerate(FAULTS.values())}
    warnings = sorted(done.stderr.splitlines())
    assert len(warnings) == len(FAULTS), done.stderr
    for warning, name in zip(warnings, sorted(reasons), strict=True):
        assert warning.startswith(f"warning: parts of the package {name}-parts are left out: ")
        assert reasons[name].replace("faulty", name) in warning
    found, said = json.loads(done.stdout)
    assert {kind: sorted(found[kind]) for kind in KINDS} == {kind: sorted(names(kind)) for kind in KINDS}
    assert said.keys() == set(asked)
    for word, (text, exit_code) in said.items():
        name = word.partition("=")[2]
        assert exit_code == 2
        assert f"{name!r} of the package {name}-parts cannot be" in text
        assert text.isprintable()
        assert "no such part" in reasons[name] or reasons[name].replace("faulty", name) in text


def test_every_command_goes_on(tmp_path: Path) -> None:
    site = install(tmp_path, "print('loud')\nraise SystemExit(7)", "faulty:part")
    for words in (("--help",), ("list", "spaces"), ("plan", "--space", "quickstart", "--json")):
        done = orchestrate(site, *words)
        assert (done.returncode, done.stderr) == (0, ""), words
    wrong = orchestrate(site, "plan", "--space", "quickstart", "--set", "model=mpl")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    left_out = (
        "parts of the package faulty-parts are left out: SystemExit: 7; mend the package or uninstall it"
    )
    for words in (("list", "models"), ("show", "mlp")):
        done = orchestrate(site, *words)
        assert done.returncode == 0
        assert done.stderr == f"loud\nwarning: {left_out}\n"  # run once, and not among the results
        assert "loud" not in done.stdout
    done = orchestrate(site, "show", "faulty")
    assert done.returncode == 2
    assert (
        "error: model 'faulty' of the package faulty-parts cannot be imported (SystemExit: 7)" in done.stderr
    )


def test_the_shell_completes_its_names_and_all_others(tmp_path: Path) -> None:
    site = install(tmp_path, "raise SystemExit(7)", "faulty:part")
    asked = {
        "_ORCHESTRATE_COMPLETE": "complete_bash",
        "COMP_WORDS": "orchestrate sweep --set model=",
        "COMP_CWORD": "3",
    }
    done = orchestrate(site, **asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"model=mlp", "model=cnn", "model=faulty"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff\xfe[models.builder]\nx=\x00y\n", "UnicodeDecodeError"),
        (b"[models.builder]\nno equals sign\n", "TypeError"),
    ],
)
def test_of_a_list_of_parts_that_cannot_be_read_the_package_is_named(
    text: bytes, reason: str, tmp_path: Path
) -> None:
    """Torch reads all lists as it is imported, and cannot go on."""
    site = install(tmp_path, "", "faulty:part")
    (next(site.glob("*.dist-info")) / "entry_points.txt").write_bytes(text)
    text_of = f": the entry points of the package faulty-parts cannot be read ({reason}: "
    for words, exit_code, kind in (
        (("list", "models"), 0, "warning"),
        (("plan", "--space", "quickstart"), 4, "error"),
    ):
        done = python("-m", "orchestrator.cli", *words, cwd=site.parent, site=site)
        assert done.returncode == exit_code, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"{kind}{text_of}")
        assert last.endswith("mend the package or uninstall it")
        assert "Traceback" not in done.stderr


def test_a_package_without_its_description_is_called_by_its_folder(tmp_path: Path) -> None:
    site = install(tmp_path, "raise RuntimeError", "faulty:part")
    (next(site.glob("*.dist-info")) / "METADATA").unlink()
    done = orchestrate(site, "list", "models")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: parts of the package faulty_parts are left out: RuntimeError")


def test_types_that_a_part_does_not_import_are_no_error(tmp_path: Path) -> None:
    code = """
from __future__ import annotations
from torch import nn

def part(input_shape: Shape, num_classes: int, *, width: Width = 3) -> Network:
    "A network whose types are known to its checker alone."
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
"""
    site = install(tmp_path, code, "faulty:part")
    done = orchestrate(site, "show", "faulty")
    assert done.returncode == 0, done.stderr
    assert "option width: " in done.stdout
    assert "types are known to its checker alone" in done.stdout
    build = "import models; net = models.build('faulty(width=5)', input_shape=(1, 8, 8), num_classes=2)"
    done = forked.python(f"{build}; print(len(net[1].bias))", cwd=site.parent, site=site)
    assert done.stdout == "5\n"
