"""What the command line does where nothing can be written, and with words that are no text: one line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[3]


def shell(command: str, cwd: Path, **extra: str | bytes) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a line of bash in which `orchestrate` is the command line."""
    done = subprocess.run(
        ["bash", "-c", f'orchestrate() {{ "{sys.executable}" -m orchestrator.cli "$@"; }}; {command}'],
        cwd=cwd,
        env={**os.environ, **extra},  # type: ignore[dict-item]  # bytes, too
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")


FULL = "error: standard output cannot be written: No space left on device\n"
CLOSED = "error: standard output is closed; give it somewhere to go, as > /dev/null\n"


@pytest.mark.parametrize("words", ["list spaces", "show full-grid", "sweep --help", "", "data path"])
def test_a_full_disk_for_results_is_one_line(tmp_path: Path, words: str) -> None:
    assert shell(f"orchestrate {words} >/dev/full", tmp_path) == (4, "", FULL)


@pytest.mark.parametrize("words", ["list spaces", "plan --space quickstart", "--help"])
def test_so_is_a_closed_output(tmp_path: Path, words: str) -> None:
    assert shell(f"orchestrate {words} >&-", tmp_path) == (4, "", CLOSED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("messages", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_messages_that_go_nowhere_change_nothing(tmp_path: Path, messages: str) -> None:
    code, out, _ = shell(f"orchestrate list spaces {messages}", tmp_path)
    assert code == 0
    assert "weight-vs-unit" in out
    assert shell(f"orchestrate sweep --nothing {messages}", tmp_path)[:2] == (2, "")
    assert shell(f"orchestrate list spaces >/dev/full {messages}", tmp_path)[:2] == (4, "")


def test_a_closed_input_is_none_of_ours(tmp_path: Path) -> None:
    assert shell("orchestrate list spaces <&-", tmp_path)[0] == 0


@pytest.mark.parametrize("words", ["show full-grid", "list spaces", "sweep --help"])
def test_a_reader_that_has_enough_ends_it_in_silence(tmp_path: Path, words: str) -> None:
    command = f"orchestrate {words} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    code, out, err = shell(command, tmp_path)
    assert (code, err) == (0, "")
    assert out in ("0\n", "141\n")  # head may be quicker, or not
    assert shell(f"orchestrate {words} | true; echo ${{PIPESTATUS[0]}}", tmp_path)[1:] == ("141\n", "")


def test_words_that_are_no_text_are_refused(tmp_path: Path) -> None:
    code, out, err = shell("orchestrate show $'a\\xffb'", tmp_path)
    assert (code, out) == (2, "")
    assert err == "error: 'a\\udcffb' is no text in this machine's encoding; write it as UTF-8\n"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR"])
def test_so_are_settings(tmp_path: Path, name: str) -> None:
    code, out, err = shell("orchestrate list spaces", tmp_path, **{name: b"/tmp/\xff"})
    assert (code, out) == (2, "")
    assert err == f"error: {name} is '/tmp/\\udcff', no text in this machine's encoding; use UTF-8\n"


def test_so_is_a_working_folder_of_that_kind_and_one_that_is_gone(tmp_path: Path) -> None:
    code, _, err = shell("mkdir $'a\\xff'; cd $'a\\xff'; orchestrate list spaces", tmp_path)
    assert code == 4
    assert "a\\udcff', no text in UTF-8; go to another" in err
    assert len(err.splitlines()) == 1
    code, _, err = shell("mkdir gone; cd gone; rmdir ../gone; orchestrate list spaces", tmp_path)
    assert code == 4
    assert "the working folder cannot be used: No such file or directory; go to another" in err
    assert err.startswith("error: ") or "getcwd" in err  # bash's own word of it


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_narrow_encoding_is_no_error(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "é漢.yaml").write_text("axes: {model: [slp], dataset: [nothing], amount: [0.5]}\n")
    code = f"import sys; [stream.reconfigure(encoding={encoding!r}) for stream in (sys.stdout, sys.stderr)]"
    done = forked.python(f"{code}; {forked.CLI}", "plan", "--space", "é漢.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown dataset 'nothing'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


PLACES = ["pipe.yaml", "/dev/zero", "folder.yaml", "nowhere.yaml", "large.yaml", "wide.yaml"]


@pytest.mark.parametrize("kind", ["plan", "sweep --device cpu"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_a_space_that_is_no_file_of_text_is_refused_at_once(tmp_path: Path, kind: str, place: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1_000_000_000)
    (tmp_path / "wide.yaml").write_text("version: 1\n", encoding="utf-16")
    done = forked.orchestrate(*kind.split(), "--space", place, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {place}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_plan_of_a_huge_network_is_one_line(tmp_path: Path) -> None:
    sets = ("--set", "seed=0", "--set", "model=mlp(widths=[1000000000])")
    done = forked.orchestrate("plan", "--space", "weight-vs-unit", *sets, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has 74,000,000,000 parameters; 1,000,000,000 is the most" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_bugs_traceback_is_not_obeyed_either(tmp_path: Path) -> None:
    code, _, err = shell("orchestrate --debug show $'x\\x1b]0;owned\\x07'", tmp_path)
    assert code != 0
    assert "Traceback" in err
    assert "\x1b" not in err
    assert r"\x1b]0;owned\x07" in err


def test_standard_output_comes_back_when_the_last_of_two_threads_has_left() -> None:
    code = """
        import os, threading
        from orchestrator.system.console import stdout_to_stderr

        entered = threading.Barrier(2)

        def first():
            with stdout_to_stderr():
                entered.wait()

        thread = threading.Thread(target=first)
        print("before")
        thread.start()
        with stdout_to_stderr():
            entered.wait()
            thread.join()
            os.write(1, b"within\\n")
            print("within too")
        print("after")
        try:
            with stdout_to_stderr(), stdout_to_stderr():
                raise KeyError
        except KeyError:
            print("after an error")
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "after", "after an error"]
    assert done.stderr.splitlines() == ["within", "within too"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_standard_output_is_redirected_where_a_stream_is_closed(closed: str) -> None:
    code = """
from orchestrator.system.console import stdout_to_stderr
with stdout_to_stderr():
    print("within")
print("after")
"""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if ">&-" in closed.split() else "after\n")
