"""One's own files: whose module an import gives, what a digest covers, and what each mistake says."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import models as our_models
import pruning as our_pruning
from pruning.user_code import imports, own_code, sources
from pruning.user_code.own_code import OwnCodeError, code_of, find_function, pinned, shown
from pruning.user_code.sources import MAX_BYTES


def write(folder: Path, **files: str) -> None:
    """Write files; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def research(folder: Path) -> Path:
    """A file beside packages with the names of ours; every form of import that Python has."""
    write(
        folder,
        net="import models\nimport models.blocks as blocks\nfrom models import NAME\n"
        "from pruning import step\n"
        "from models.blocks import *\nimport importlib\nfrom importlib import import_module\n"
        "computed = import_module('models.' + 'computed')\nalso = importlib.import_module('pruning.step')\n"
        "def late():\n    import models.late\n    from pruning.step import NAME as name\n"
        "    return models.late.NAME, name, __import__('pruning').step.NAME\n",
        models__blocks="from . import NAME as parent\nfrom .deep.inner import NAME as inner\n"
        "def relative():\n    from .late import NAME\n    return NAME\n",
        models__computed="NAME = 'their computed'\n",
        models__late="NAME = 'their late'\n",
        models__unused="raise SystemExit('never imported')\n",
        models__deep__inner="from ...models import NAME\n",
        pruning__step="NAME = 'their step'\n",
    )
    (folder / "models" / "__init__.py").write_text("NAME = 'theirs'\n")
    return folder


def test_what_a_file_imports_is_its_own_and_what_we_import_is_ours(research: Path) -> None:
    module = code_of("net.py:late").module
    assert (module.NAME, module.blocks.parent, module.inner) == ("theirs",) * 3
    assert module.step.NAME == module.also.NAME == "their step"
    assert module.computed.NAME == "their computed"
    assert module.late() == ("their late", "their step", "their step")  # imports that run when it is called
    assert module.relative() == "their late"
    assert (sys.modules["models"], sys.modules["pruning"]) == (our_models, our_pruning)
    assert not any(hasattr(package, "NAME") for package in (our_models, our_pruning))


def test_the_digest_covers_what_is_reached_and_nothing_else(research: Path) -> None:
    names = {
        "net.py",
        "models/__init__.py",
        "models/blocks.py",
        "models/computed.py",  # by a computed name, at import
        "models/deep/inner.py",
        "models/late.py",  # inside functions
        "pruning/step.py",
    }
    before = code_of("net.py:late")
    assert set(before.sources) == names
    (research / "models" / "unused.py").write_text("other = 1\n")
    assert code_of("net.py:late") is before
    for name in sorted(names):
        text = (research / name).read_text()
        (research / name).write_text(f"{text}# changed\n")
        assert pinned("net.py:late") != f"net.py@{before.pin}:late", name
        (research / name).write_text(text)
    assert code_of("net.py:late") is before


def test_equal_files_in_another_folder_have_an_equal_name(research: Path, tmp_path: Path) -> None:
    name = pinned("net.py:late")
    assert shown(name) == "net.py:late"
    other = tmp_path / "elsewhere" / "deep"
    for path in [*research.glob("*.py"), *research.glob("models/**/*.py"), *research.glob("pruning/*.py")]:
        target = other / path.relative_to(research)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with own_code.relative_to(other):
        assert pinned("net.py:late") == name
    with own_code.relative_to(other.parent):
        assert pinned("deep/net.py:late") != name  # another file for a reader, and for the key


@pytest.mark.parametrize("packaged", [True, False])
def test_a_file_inside_a_package_imports_as_it_would_from_the_folder_above(
    folder: Path, packaged: bool
) -> None:
    write(
        folder,
        models__net="from .blocks import A\nfrom models.blocks import B\nimport blocks\n",
        utils="C = 3\n",
    )
    write(folder, models__blocks="from utils import C\nA = B = 1\n")
    if packaged:
        (folder / "models" / "__init__.py").write_text("")
    module = code_of("models/net.py:f").module
    assert (module.A, module.B, module.blocks.C) == (1, 1, 3)
    (folder / "spaces").mkdir()
    with own_code.relative_to(folder / "spaces"):
        assert shown(pinned("../models/net.py:f")) == "../models/net.py:f"
        assert code_of("../models/net.py:f").sources == code_of("../models/net.py:f").sources
        assert set(code_of("../models/net.py:f").sources) >= {"models/net.py", "models/blocks.py", "utils.py"}


def test_absolute_paths_and_links_are_read_and_recorded_without_the_machine(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    far = tmp_path_factory.mktemp("far")
    write(
        far,
        lab__net="from lab.part import VALUE\ndef f(): return VALUE\n",
        lab__part="VALUE = 7\n",
    )
    (far / "lab" / "__init__.py").write_text("")
    name = pinned(f"{far}/lab/net.py:f")
    assert (shown(name), find_function(name)()) == ("lab/net.py:f", 7)
    (folder / "link.py").symlink_to(far / "lab" / "part.py")
    assert shown(pinned("link.py:g")) == "link.py:g"


def test_python_s_own_tools_work_in_such_a_file(folder: Path) -> None:
    write(
        folder,
        net="from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import get_type_hints\n"
        "@dataclass\nclass Base:\n    width: int = 2\n    def f(self): return self.width\n"
        "class Derived(Base):\n    def f(self): return super().f() + 1\n"
        "def hints(): return get_type_hints(Base)\n",
    )
    derived = find_function("net.py:Derived")(width=4)
    assert (derived.f(), dataclasses.asdict(copy.deepcopy(derived))) == (5, {"width": 4})
    assert find_function("net.py:hints")() == {"width": int}
    assert inspect.getsource(type(derived)).startswith("class Derived")
    assert inspect.getfile(type(derived)) == str(folder / "net.py")


def test_installed_packages_and_the_standard_library_stay_what_they_are(folder: Path) -> None:
    # As everywhere in Python: a folder without __init__.py hides no package, and sys is built in.
    (folder / "torch").mkdir()
    write(folder, sys="raise ValueError\n", os="raise ValueError\n", statistics="OWN = True\n")
    write(folder, net="import sys, torch, statistics\ndef f():\n    import os, sys\n    return os, sys\n")
    module = code_of("net.py:f").module
    assert module.sys is sys
    assert hasattr(module.torch, "nn")
    assert module.statistics.OWN
    assert module.f() == (os, sys)


def test_a_file_that_its_digest_misses_is_refused(folder: Path) -> None:
    write(folder, net="def f(name):\n    return __import__(name)\n", part="VALUE = 1\n")
    function = find_function("net.py:f")
    assert function("json").dumps
    with pytest.raises(
        OwnCodeError, match=r"net\.py imports part\.py by a computed name, which its digest misses"
    ):
        function("part")


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "net.py:f", "there is no file net.py; paths are relative, in this folder: .*"),
        ({"nets": ""}, "net.py:f", "there is no file net.py; did you mean nets.py?"),
        ({}, "sub/net.py:f", "there is no folder sub for sub/net.py"),
        ({"net": "def small(): ...\n"}, "net.py:smal", "net.py has no function 'smal'; did you mean small?"),
        ({"net": "x = 1\n"}, "net.py:x", "net.py has no function 'x'; it has none"),
        ({"net": "import json\n\nimport nowhere\n"}, "net.py:f",
         "net.py cannot be imported: ModuleNotFoundError: No module named 'nowhere' (net.py, line 3)"),
        ({"net": "from part import f\n", "part": "\n1 / 0\n"}, "net.py:f",
         "net.py cannot be imported: ZeroDivisionError: division by zero (part.py, line 2)"),
        ({"net": "from part import g\n", "part": "\n"}, "net.py:f",
         "net.py cannot be imported: ImportError: cannot import name 'g' from 'part' .*"),
        ({"net": "import part.more\n", "part": "\n"}, "net.py:f",
         "net.py cannot be imported: ModuleNotFoundError: No module named 'part.more'.*"),
        ({"net": "def f(:\n"}, "net.py:f", "net.py cannot be imported: SyntaxError: .* (net.py, line 1)"),
        ({"net": "raise SystemExit('a\\nb')\n"}, "net.py:f",
         "net.py cannot be imported: SystemExit: a b (net.py, line 1)"),
        ({"net": f"# {'x' * MAX_BYTES}\n"}, "net.py:f",
         "net.py: with it the sources have more than 1,000,000 bytes; import less"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_that_names_the_file(
    folder: Path, files: dict[str, str], name: str, message: str
) -> None:
    write(folder, **files)
    before = set(sys.modules)
    with pytest.raises(OwnCodeError) as caught:
        find_function(name)
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), str(caught.value)), str(caught.value)
    if "cannot be imported" in message:  # half a module is not left behind
        assert not [name for name in set(sys.modules) - before if name.endswith((".net", ".part"))]


def test_a_file_in_another_encoding_and_a_folder_are_refused(folder: Path) -> None:
    (folder / "net.py").write_bytes(b"# \xff\n")
    with pytest.raises(OwnCodeError, match=r"net\.py: byte 2 is no UTF-8; save the file as UTF-8"):
        pinned("net.py:f")
    (folder / "part.py").mkdir()
    with pytest.raises(OwnCodeError, match=r"part\.py is no plain file"):
        pinned("part.py:f")


def test_a_pin_whose_code_nobody_gave_is_refused(folder: Path) -> None:
    write(folder, net="def f(): ...\n")
    with pytest.raises(
        OwnCodeError, match=r"net\.py:f: the code with the digest 0123456789abcdef is not at hand"
    ):
        find_function("net.py@0123456789abcdef:f")


def test_an_edited_file_is_another_code_and_the_old_one_stays(folder: Path) -> None:
    write(folder, net="def f(): return 1\n")
    old = pinned("net.py:f")
    write(folder, net="def f(): return 2\n")
    new = pinned("net.py:f")
    assert (find_function(old)(), find_function(new)()) == (1, 2)


@pytest.mark.parametrize("first", ["orchestrator", "models"])
def test_ours_stay_ours_in_a_process_that_starts_among_theirs(research: Path, first: str) -> None:
    """As a notebook or `python -m` does: the current folder is the first of the path."""
    if first == "models":  # ours is imported first where theirs has no __init__.py
        (research / "models" / "__init__.py").unlink()
        (research / "pruning" / "__init__.py").write_text("NAME = 'theirs'\n")
    code = f"import {first}, pruning; from importlib.util import find_spec; print(pruning.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(find_spec('models').origin)"],
        cwd=research,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [our_pruning.__file__, our_models.__file__]


def test_theirs_loaded_before_ours_is_one_line(research: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import models, orchestrator"],
        cwd=research,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert f"another models is loaded already, from {research}/models" in last
    assert "import orchestrator before it" in last


def test_torchvision_is_imported_by_the_module_that_makes_it_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, net="def f():\n    import torchvision\n    return torchvision\n")
    imported: list[str] = []
    monkeypatch.setattr(imports, "IMPORT_FIRST", {"torchvision": "models.import_guard"})
    monkeypatch.setattr(imports.importlib, "import_module", imported.append)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    own = imports.World(sources.Layout(sources.SourceFiles(folder, {}), "net.py"))
    assert own.import_module("torchvision").__name__ == "torchvision"
    assert imported == ["models.import_guard"]


def test_names_that_are_none() -> None:
    for text in ("net.py", "net.py:", "a b.py:f", "net.txt:f", "net.py:1f", "net.py@123:f", "mlp", "a.b"):
        assert not own_code.is_own(text)
