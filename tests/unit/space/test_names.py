"""The names in names.json are those of the registries, and reading them loads nothing heavy."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from models import torchvision_models
from orchestrator.space import catalog, hyperparameters, names, space
from orchestrator.space.schema import AxisValues
from pruning.mask_selection import SCOPES

ROOT = Path(__file__).parents[3]


def test_the_kinds_are_those_of_the_catalogue() -> None:
    assert list(catalog.KINDS) == list(names.KINDS)


def test_the_file_of_names_is_up_to_date() -> None:
    expected = runpy.run_path(str(ROOT / "docs" / "write_methods.py"))["name_lists"]()
    written = json.loads(names.NAMES_FILE.read_text(encoding="utf-8"))
    assert written == expected, "write it anew: python docs/write_methods.py"


@pytest.mark.parametrize("kind", names.KINDS)
def test_every_kind_has_the_names_and_lines_of_the_catalogue(kind: str) -> None:
    assert list(names.names(kind).items()) == catalog.names(kind)


def test_every_axis_that_takes_a_method_offers_its_names() -> None:
    for name, kind in names.KINDS.items():
        if name not in ("spaces", "stops"):
            assert names.axis_values(kind.axis) == names.names(name)
    offered = list(names.axis_values("model"))
    assert offered[:4] == ["slp", "mlp", "cnn", "densenet121"]
    assert offered[-2:] == ["torchvision.NAME", "timm.NAME"]  # one line for all of a library's models
    assert list(names.axis_values("scope")) == list(SCOPES)
    assert list(names.axis_values("when")) == ["after", "init", "during"]
    assert names.axis_values("amount") == names.axis_values("nonsense") == {}


def test_every_axis_is_known() -> None:
    fields = [field.alias or name for name, field in AxisValues.model_fields.items()]
    assert set(fields) <= set(names.settable_keys())
    assert names.settable_keys() == list(space.SETTABLE)


def test_a_space_is_its_file_unless_something_else_bears_its_name() -> None:
    assert names.space_text("quickstart") == catalog.describe("quickstart")
    assert names.space_text("threshold") is None  # a schedule and a stop, too
    assert names.space_text("snip") is None
    assert names.space_text("../secret") is None


def test_the_names_of_a_library_are_those_that_it_has() -> None:
    theirs = names.library_names("torchvision")
    assert theirs == [f"torchvision.{name}" for name in torchvision_models.names()]
    assert names.library_names("timm") == names.library_names("nonsense") == []


def test_every_option_that_may_be_an_axis_is_known() -> None:
    assert names.hyperparameter_axes() == hyperparameters.names()


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys\nfrom orchestrator.space import names\nfor kind in names.KINDS: names.names(kind)\n"
        "names.settable_keys(); names.hyperparameter_axes(); names.axis_values('scope')\n"
        "print(sorted({'torch', 'numpy', 'yaml', 'pydantic', 'mlflow', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
