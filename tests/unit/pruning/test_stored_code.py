"""Copies that a store keeps: when they may run, and that nothing else of a store does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pruning.user_code import own_code, stored_code
from pruning.user_code.own_code import OwnCodeError, code_of, find_function, pinned
from pruning.user_code.stored_code import accept_kept, codes_in, dump, parse_kept, trusting


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; what this process learns of codes in a test is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_code, "_CODES", {})
    (tmp_path / "net.py").write_text("from part import VALUE\ndef f():\n    return VALUE\n")
    (tmp_path / "part.py").write_text("VALUE = 1\n")
    return tmp_path


@pytest.fixture
def kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A pinned name and the copy of its code, which this process has not heard of."""
    name = pinned("net.py:f")
    text = dump([code_of(name)])
    monkeypatch.setattr(own_code, "_CODES", {})
    return name, text


def test_files_at_hand_with_equal_content_run(kept: tuple[str, str], folder: Path) -> None:
    accept_kept(kept[0], lambda: kept[1])
    assert find_function(kept[0])() == 1
    assert code_of(kept[0]).module.__file__ == str(folder / "net.py")


def test_a_space_in_a_subfolder_is_found_from_where_its_sweep_was_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "spaces").mkdir()
    for name in ("net.py", "part.py"):
        (folder / name).rename(folder / "spaces" / name)
    with own_code.relative_to(folder / "spaces"):
        name = pinned("net.py:f")
    text = dump(codes_in(name))
    monkeypatch.setattr(own_code, "_CODES", {})
    accept_kept(name, lambda: text)
    assert code_of(name).base == folder / "spaces"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "part.py").write_text("VALUE = 2\n"), "part.py is not as it was"),
        (lambda folder: (folder / "part.py").unlink(), "there is no part.py in this folder"),
        (lambda folder: (folder / "net.py").unlink(), "there is no net.py in this folder"),
    ],
)
def test_other_content_needs_trust(kept: tuple[str, str], folder: Path, change: Any, reason: str) -> None:
    change(folder)
    with pytest.raises(OwnCodeError) as caught:
        accept_kept(kept[0], lambda: kept[1])
    digest = own_code.split(kept[0]).pin
    assert str(caught.value).startswith(
        f"net.py:f needs its file with the digest {digest}, and {reason}; go to"
    )
    assert "--trust-code" in str(caught.value)
    with pytest.raises(OwnCodeError, match="not at hand"):
        find_function(kept[0])
    with trusting(True):
        accept_kept(kept[0], lambda: kept[1])
    assert find_function(kept[0])() == 1
    with pytest.raises(OwnCodeError), trusting(False):  # trust ends with its block
        accept_kept("net.py@0123456789abcdef:f", lambda: kept[1])


def test_a_link_out_of_the_folder_is_not_at_hand(
    kept: tuple[str, str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    far = tmp_path_factory.mktemp("far") / "part.py"
    (folder / "part.py").rename(far)
    (folder / "part.py").symlink_to(far)
    with pytest.raises(OwnCodeError, match=r"part\.py is not below this folder"):
        accept_kept(kept[0], lambda: kept[1])


def test_a_name_without_a_digest_is_never_read_for_a_store(folder: Path) -> None:
    with pytest.raises(
        OwnCodeError, match=r"net\.py:f is recorded without the digest of its file, and is not read"
    ):
        accept_kept("net.py:f", lambda: "")


def test_another_code_than_the_pin_s_does_not_run_under_trust(kept: tuple[str, str], folder: Path) -> None:
    content = json.loads(kept[1])
    next(iter(content["code"].values()))["files"]["part.py"] = "VALUE = 'changed'\n"
    (folder / "part.py").unlink()
    with trusting(True), pytest.raises(OwnCodeError, match="no copy of its file with the digest"):
        accept_kept(kept[0], lambda: json.dumps(content))
    with trusting(True), pytest.raises(OwnCodeError, match="no copy of its file with the digest"):
        accept_kept(kept[0], lambda: "")


@pytest.mark.parametrize("path", ["../net.py", "/etc/net.py", "a/../net.py", "a//net.py", "net.sh", ""])
def test_a_kept_copy_has_source_files_below_its_folder_alone(kept: tuple[str, str], path: str) -> None:
    content = json.loads(kept[1])
    next(iter(content["code"].values()))["files"][path] = ""
    with pytest.raises(
        OwnCodeError, match=r"the kept code cannot be read: .*no source file below the folder"
    ):
        parse_kept(json.dumps(content))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "code": {}}', '{"format": 1, "code": {"a": 1}}', "[" * 9999, "null"],
)
def test_what_is_no_kept_code_is_refused(text: str) -> None:
    with pytest.raises(OwnCodeError, match="the kept code cannot be read"):
        parse_kept(text)


def test_another_process_of_the_sweep_runs_the_sources_that_it_was_handed(folder: Path) -> None:
    name = pinned("net.py:f")
    text = dump(codes_in(f"a {name} b"), with_base=True)
    (folder / "part.py").write_text("VALUE = 'edited since'\n")
    code = "import sys; from pruning.user_code import own_code, stored_code\n"
    code += "stored_code.add_all(sys.stdin.read())\n"
    code += f"f = own_code.find_function({name!r}); print(f(), f.__globals__['__file__'])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == ["1", str(folder / "net.py")]
    assert stored_code.dump([]) == stored_code.dump(codes_in("mlp(width=3)"))
