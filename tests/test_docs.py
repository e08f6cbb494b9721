"""The docs say what the code says: pages that are written from it, commands, spaces, Python, the site."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest
import typer
import yaml

from orchestrator.cli import app
from orchestrator.planning.plan import make_plan
from orchestrator.space.space import FILE_KEYS, load_space

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
RUN = "<!-- run -->"
SMALLEST = {"model": ["slp"], "dataset": ["digits"], "amount": [0.5]}
COMMAND = typer.main.get_command(app)
SHELLS = ("sh", "console", "bash", "")
PLACEHOLDERS = ("...", "|", "[", "<")  # of a line that shows a form, and is no command


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, its language, its text, and whether it is marked to be run."""

    place: str
    language: str
    text: str
    marked: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()].rstrip("\n")
        place = f"{page.relative_to(ROOT)}:{before.count(chr(10)) + 2}"
        yield Block(place, match[1], match[2], before.endswith(RUN))


BLOCKS = [block for page in PAGES for block in blocks(page)]
EXAMPLES = {file.read_text(encoding="utf-8") for file in (DOCS / "examples").rglob("*.*") if file.is_file()}


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


# ---- pages that are written from the code


def test_the_page_of_methods_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "write_methods.py"))["page"]()
    written = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert written == page, "write it anew: python docs/write_methods.py"


def test_every_formula_is_of_a_method_and_every_score_and_schedule_has_one() -> None:
    from orchestrator.space import catalog

    formulas = yaml.safe_load((DOCS / "formulas.yaml").read_text(encoding="utf-8"))
    for kind, found in formulas.items():
        known = {item.name for item in catalog.items(kind)}
        assert found.keys() - {"about"} <= known
        if kind in ("criteria", "schedules", "stops"):
            assert known <= found.keys()


def test_code_that_is_shown_is_that_of_the_examples() -> None:
    pages, languages = ("docs/extend.md", "docs/own.md"), ("sh", "console")
    shown = [block for block in BLOCKS if block.place.startswith(pages) and block.language not in languages]
    assert shown
    assert [block.place for block in shown if block.text not in EXAMPLES] == []


# ---- commands


def commands() -> list[tuple[str, str, bool]]:
    """(where, line, whether it is whole) of our commands: in blocks, and in the text without placeholders."""
    found = []
    for block in of(*SHELLS):
        lines = block.text.replace("\\\n", " ").splitlines()
        found += [(block.place, line.removeprefix("$ ").strip(), True) for line in lines]
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`\n]+)`", text)
        plain = (span for span in spans if not any(sign in span for sign in PLACEHOLDERS))
        found += [(page.name, span, False) for span in plain]
    return sorted({item for item in found if item[1].startswith("orchestrate ")})


def understood(line: str) -> str:
    """Why the command line would be refused as such; empty if it is understood."""
    words = shlex.split(line.partition(" > ")[0].partition(" #")[0])[1:]
    command = COMMAND
    while words and hasattr(command, "commands"):
        name, words = words[0], words[1:]
        if any(name in parameter.opts for parameter in command.params):
            return ""  # one of the whole program, which may do something when it is parsed
        if name not in command.commands:
            return f"there is no command {name}"
        command = command.commands[name]
    try:
        command.make_context("orchestrate", words)
    except typer.Exit:
        return ""  # --help
    except typer.exceptions.TyperException as error:
        return str(error)
    return ""


def test_there_are_commands() -> None:
    assert len(commands()) > 30
    assert understood("orchestrate sweep --spaec x")
    assert understood("orchestrate swep --space x")
    assert understood("orchestrate data fetsh mnist")
    assert not understood("orchestrate data fetch mnist")


@pytest.mark.parametrize(("place", "line", "whole"), commands())
def test_every_command_exists(place: str, line: str, whole: bool) -> None:
    wrong = understood(line)
    assert not wrong or (wrong.startswith("Missing") and not whole), f"{place}: {line}"


# ---- spaces


def completed(text: str) -> str:
    """A fragment of a space file with what it leaves out."""
    data = yaml.safe_load(text)
    if not data.keys() <= set(FILE_KEYS):
        data = {"axes": data}
    axes = {**SMALLEST, **(data.get("axes") or {})}
    return yaml.safe_dump({**data, "axes": axes}, sort_keys=False)


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_every_space_can_be_read(block: Block, tmp_path: Path) -> None:
    if block.text in EXAMPLES:
        pytest.skip("it needs its own package: test_plugins.py reads it")
    whole = "axes:" in block.text and all(f"{axis}:" in block.text for axis in SMALLEST)
    (tmp_path / "shown.yaml").write_text(block.text if whole else completed(block.text))
    load_space(str(tmp_path / "shown.yaml"))


def test_the_example_of_a_space_compares_what_differs(tmp_path: Path) -> None:
    (block,) = (b for b in of("yaml") if b.place.startswith("docs/index.md") and "axes:" in b.text)
    (tmp_path / "shown.yaml").write_text(block.text)
    plan = make_plan(load_space(str(tmp_path / "shown.yaml")))
    assert len({trial.config.technique for trial in plan.trials}) == 3
    assert [item.reason for item in plan.excluded if item.planned] == []


# ---- Python


def test_every_block_of_python_is_formatted(tmp_path: Path) -> None:
    for number, block in enumerate(of("python")):
        (tmp_path / f"block_{number}.py").write_text(block.text)
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff is not None
    done = subprocess.run(
        [ruff, "format", "--diff", "--line-length", "110", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "block", [block for block in of("python") if block.marked], ids=lambda block: block.place
)
def test_what_is_marked_runs(block: Block, tmp_path: Path) -> None:
    done = forked.python(block.text, cwd=tmp_path, seconds=300)
    assert done.returncode == 0, done.stderr


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, strictly: a link that leads nowhere is an error."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("docs", "orchestrator", "models", "pruning"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", place)
    tool = Path(sys.executable).parent / "zensical"
    done = subprocess.run(
        [str(tool), "build", "--strict"], cwd=place, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "site"


def leaves(tree: Any) -> Iterator[str]:
    """The texts of nested lists and mappings."""
    if isinstance(tree, str):
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, dict) else list(tree):
            yield from leaves(branch)


def test_every_page_is_in_the_navigation() -> None:
    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(page for page in pages if not page.startswith("examples/"))


LOADED = (
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"' >]+""",
    r"""<link\b(?![^>]*canonical)[^>]*\bhref=["']?(?:https?:)?//[^"' >]+""",
    r"""url\(["']?(?:https?:)?//[^"')]+""",
    r"""@import[^;]*//""",
)


@pytest.mark.slow
def test_the_site_needs_no_network(site: Path) -> None:
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        assert [found for pattern in LOADED for found in re.findall(pattern, text)] == [], file


@pytest.mark.slow
def test_the_site_documents_python(site: Path) -> None:
    page = (site / "python.html").read_text(encoding="utf-8")
    for name in (
        "orchestrator.results",
        "orchestrator.load",
        "models.build",
        "pruning.prune.prune",
        "pruning.shrink",
    ):
        assert f'id="{name}"' in page


# ---- what is promised


def test_every_promise_of_security_is_held_by_a_test_that_exists() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    tests = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").rglob("test_*.py")))
    assert len(promised) > 20
    assert promised <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))


def test_what_is_promised_is_found_from_the_first_pages() -> None:
    for page in (ROOT / "README.md", DOCS / "index.md", DOCS / "pages.md", DOCS / "machines.md"):
        assert "SECURITY.md" in page.read_text(encoding="utf-8"), page
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert linked
    assert [place for place in linked if not (ROOT / place).is_file()] == []
