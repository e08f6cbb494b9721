"""Control characters: refused in a space, shown as escapes wherever a terminal would obey them."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import sys
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.tables import Table, markdown
from orchestrator.cli.output import print_table
from orchestrator.errors import OutputError, SpaceError, StoreError
from orchestrator.execution.progress import SweepProgress, TaskCounter
from orchestrator.formatting import escape_controls, first_control
from orchestrator.report.components import TableBlock, render_blocks
from orchestrator.space.space import load_space
from orchestrator.system.console import (
    OutputStream,
    drawn_on,
    escaped,
    print_json,
    print_line,
    print_text,
    resume_hint,
)
from orchestrator.system.signals import SignalHandler

ROOT = Path(__file__).parents[3]
TITLE = "\x1b]0;owned\x07"  # sets a terminal's title
SPACE = """\
version: 1
about: {about}
axes:
  model: [mlp]
  dataset: [digits]
  amount: [0.5]
"""
# By the names of Unicode's code charts: C0, DEL, C1, bidirectional, zero width, separators, a surrogate.
CONTROLS = {
    "\x00": r"\x00",
    "\x07": r"\x07",
    "\x1b": r"\x1b",
    "\r": r"\r",
    "\x7f": r"\x7f",
    "\x85": r"\x85",
    "\x9b": r"\x9b",
    "\u200b": r"\u200b",
    "\u200f": r"\u200f",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\u2028": r"\u2028",
    "\ufeff": r"\ufeff",
    "\ud800": r"\ud800",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize("sign", CONTROLS)
def test_a_control_character_is_shown_as_its_escape(sign: str) -> None:
    assert escape_controls(f"a{sign}b") == f"a{CONTROLS[sign]}b"
    assert first_control(f"a{sign}b") == 1
    assert first_control(f"a{sign}b", allowed=sign) is None


@pytest.mark.parametrize("text", ["", "plain", "é 漢字 🙂 ½ \xa0", "a\\nb", "[red]x[/red]"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert escape_controls(text) == text
    assert first_control(text) is None


@given(text=st.text(alphabet=st.characters(exclude_categories=())))
def test_what_is_escaped_has_none_and_can_be_written(text: str) -> None:
    shown = escape_controls(text)
    assert first_control(shown) is None
    shown.encode()


@given(text=st.text())
def test_nothing_but_controls_changes(text: str) -> None:
    assert (escape_controls(text) == text) is (first_control(text) is None)


# A space


def space_in(folder: Path, about: str, name: str = "crafted.yaml", more: str = "") -> str:
    path = folder / name
    path.write_text(SPACE.format(about=about) + more, encoding="utf-8")
    return str(path)


def refused(path: str, match: str, *sets: str) -> None:
    with pytest.raises(SpaceError, match=match) as caught:
        load_space(path, sets)
    assert first_control(str(caught.value)) is None


ESCAPES = [r"\e]0;owned\a", r"\x7f", r"\x9b31m", r"\u202e", r"\u200b", r"\ud800", r"\r", r"\L"]


@pytest.mark.parametrize("escape", ESCAPES)
def test_about_without_control_characters(tmp_path: Path, escape: str) -> None:
    refused(space_in(tmp_path, f'"a{escape}b"'), "crafted.yaml:2: the control character .* is in it")


def test_about_may_have_lines_and_tabs(tmp_path: Path) -> None:
    assert load_space(space_in(tmp_path, r'"two\nlines\tand a tab"')).about == "two\nlines\tand a tab"
    assert load_space(space_in(tmp_path, "|\n  one\n  two")).about == "one\ntwo\n"


@pytest.mark.parametrize(
    "more",
    [
        'protect: ["a\\eb"]\n',
        'protect: ["a\\nb"]\n',
        '"pro\\etect": [output]\n',
        'recover: "fine\\u202etune"\n',
        'exclude: [{model: "m\\x9bp"}]\n',
        'train: {optimizer: "ad\\eam"}\n',
    ],
)
def test_no_name_or_value_has_one(tmp_path: Path, more: str) -> None:
    refused(space_in(tmp_path, "x", more=more), r"crafted.yaml:7: the control character \\")


@pytest.mark.parametrize("sign", ["\x85", "\u202e", "\u2066", "\ufeff", "\u2028"])
def test_nor_a_comment(tmp_path: Path, sign: str) -> None:
    refused(space_in(tmp_path, "x", more=f"# a{sign}b\n"), "crafted.yaml:7: the control character")


def test_nor_the_name_of_the_file(tmp_path: Path) -> None:
    for name in ("a\x1b[31mb.yaml", "a\nb.yaml", "a\u202eb.yaml"):
        refused(space_in(tmp_path, "x", name), "a space is called by its file, and this name has control")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb.yaml")
    Path(path).write_text(SPACE.format(about="x"))
    refused(path, "a space is called by its file")


@pytest.mark.parametrize("text", ["a\x1b[31mb", '"a\\eb"', "a\udcffb", "a\x9bb", "a\u202eb"])
def test_nor_a_value_of_set(text: str) -> None:
    refused("weight-vs-unit", "the control character|no key|unknown", f"protect={text}")
    refused("weight-vs-unit", "the control character|no key|unknown", f"model={text}")
    refused("weight-vs-unit", "unknown key|write key=value", f"{text}=1")


def test_the_named_spaces_have_none() -> None:
    for file in sorted((ROOT / "orchestrator/spaces").glob("*.yaml")):
        load_space(file.stem)
        assert first_control(file.read_text(encoding="utf-8"), allowed="\n") is None


# What is shown


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(StoreError(f"run {TITLE}\nerror: all is well")) == (
        r"run \x1b]0;owned\x07\nerror: all is well"
    )


def test_a_line_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"{TITLE}\nsweep finished: 0 failed")
    print_line("a\x9bb", error=True)
    print_text("two\nlines\x1b")
    out, err = capsys.readouterr()
    assert out == "\\x1b]0;owned\\x07\\nsweep finished: 0 failed\ntwo\nlines\\x1b\n"
    assert err == "a\\x9bb\n"


def test_a_table_shows_names_as_they_are_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[red]red[/red]", "[link=http://x]y[/link]", f"{TITLE}\nb", ":smile:")
    rows = [(name, "1") for name in names]
    print_table(Table(f"title {TITLE}", ("name", "[bold]n[/bold]"), rows, "note\x1b"))
    out = capsys.readouterr().out
    for text in (*names[:2], r"\x1b]0;owned\x07\nb", ":smile:", "[bold]n[/bold]"):
        assert text in out
    assert first_control(out, allowed="\n") is None


def test_progress_shows_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress(TaskCounter(0), TaskCounter(1), SignalHandler()) as progress:
        progress.print_line(f"[red]{TITLE}\nfailed")
    assert capsys.readouterr().err == "[red]\\x1b]0;owned\\x07\\nfailed\n"


def test_json_stays_json_and_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"name": "".join(CONTROLS), "del": "\x7f", "é": ["\n"]}
    print_json(content)
    out = capsys.readouterr().out
    assert json.loads(out) == content
    assert first_control(out, allowed="\n") is None


def test_the_command_that_carries_on_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["orchestrate", "sweep", "--space", f"{TITLE}\nx"])
    assert resume_hint() == r"interrupted; to carry on: orchestrate sweep --space '\x1b]0;owned\x07\nx'"


def test_markdown_has_no_html_and_no_other_cells() -> None:
    found = markdown([Table("<b>t</b>", ("a|b",), [("x\ny",), ("<script>",), ("p < 0.05",)], "<i>note")])
    assert found == (
        "**&lt;b>t&lt;/b>**\n\n| a\\|b |\n| --- |\n| x\\ny |\n| &lt;script> |\n| p < 0.05 |\n\n&lt;i>note"
    )


def test_html_has_none_of_a_names() -> None:
    assert "<script>" not in render_blocks([TableBlock(["<script>"], [["<script>alert(1)</script>"]])])


# The streams


def test_a_stream_escapes_within_a_command_alone() -> None:
    inner = io.StringIO()
    stream = OutputStream(inner, for_results=True)
    stream.write("\x1b[1mhelp\n")
    stream.escaped = True
    stream.write("\x1b[1mname\t\n")
    drawn_on(cast(io.StringIO, stream)).write("\x1b[2K")
    assert inner.getvalue() == "\x1b[1mhelp\n\\x1b[1mname\t\n\x1b[2K"


def test_a_command_escapes_both_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", OutputStream(out, for_results=True))
    monkeypatch.setattr(sys, "stderr", OutputStream(err, for_results=False))
    with escaped():
        print(TITLE)
        print(TITLE, file=sys.stderr)
    print("\x1b")
    assert out.getvalue() == "\\x1b]0;owned\\x07\n\x1b\n"
    assert err.getvalue() == "\\x1b]0;owned\\x07\n"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\xe9\u6f22"), ("latin-1", r"é\u6f22"), ("utf-8", "é漢")]
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, shown: str) -> None:
    raw = io.BytesIO()
    stream = OutputStream(io.TextIOWrapper(raw, encoding=encoding), for_results=True)
    stream.write("é漢\udcff")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown + r"\udcff"


def test_a_full_stream_is_an_error_for_results_alone() -> None:
    with open("/dev/full", "w") as full:
        messages = OutputStream(full, for_results=False)
        messages.write("lost")
        messages.flush()  # from here on it goes nowhere
    full = open("/dev/full", "w")  # noqa: SIM115  closing it would fail, as it has to
    results = OutputStream(full, for_results=True)
    results.write("lost")
    with pytest.raises(OutputError, match="standard output cannot be written: No space left on device"):
        results.flush()
    full.close()  # no error any more


def test_only_these_modules_write_to_the_terminal() -> None:
    """So that no text reaches one raw."""
    writing = ("cli/output", "data/decoded_cache", "execution/progress", "system/console")
    allowed = {f"orchestrator/{name}.py" for name in writing}
    calls = {"print", "typer.echo", "typer.secho", "Console", "sys.stdout.write", "sys.stderr.write"}
    writers = set()
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                writers.add(path.relative_to(ROOT).as_posix())
    assert writers == allowed


@pytest.mark.slow
def test_on_a_real_terminal_nothing_is_obeyed(tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    words = [sys.executable, "-m", "orchestrator.cli", "show", f"x{TITLE}"]
    process = os.posix_spawn(
        sys.executable,
        words,
        {**os.environ, "TERM": "xterm"},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
    )
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 2
    os.close(writer)
    out = os.read(reader, 10_000)
    os.close(reader)
    assert b"x\\x1b]0;owned\\x07" in out
    assert b"\x1b]" not in out
