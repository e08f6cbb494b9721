"""Every name that a space file may use is listed, shown whole, and can be used as it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import UsageError
from orchestrator.space.catalog import KINDS, describe, items, names
from orchestrator.space.space import SPACES, load_space
from pruning.hyperparameters import hyperparameters

METHODS = [(kind, item.name) for kind in KINDS if kind != "spaces" for item in items(kind)]
NEEDED = {"model": "slp", "dataset": "digits", "amount": "0.5"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_has_a_summary_of_its_own(kind: str) -> None:
    found = names(kind)
    assert found
    assert len({name for name, _ in found}) == len(found)
    assert len({about for _, about in found if about}) == len(found)
    assert not any("\n" in about for _, about in found)


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_shows(kind: str, name: str) -> None:
    item = next(item for item in items(kind) if item.name == name)
    shown = describe(name)
    assert f"{item.axis} {name}: {item.about}\n" in shown
    assert item.text or kind == "models"  # theirs may be one line
    assert all(line.strip() in shown for line in item.text.splitlines())
    assert item.paper in shown
    for option in item.options:
        assert f"option {option}: " in shown
    assert item.example() in shown


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_example_is_a_line_of_a_space_file(kind: str, name: str, tmp_path: Path) -> None:
    item = next(item for item in items(kind) if item.name == name)
    if name == "timm.NAME":
        pytest.importorskip("timm")
    own = item.example()
    axes = [own.removeprefix("axes: {").removesuffix("}")] if own.startswith("axes: ") else []
    rest = [f"{axis}: {value}" for axis, value in NEEDED.items() if axis != item.axis]
    file = tmp_path / "mine.yaml"
    file.write_text(f"axes: {{{', '.join([*axes, *rest])}}}\n" + ("" if axes else f"{own}\n"))
    space = load_space(str(file))
    keys = {"stop": space.stop, "train.recipe": space.train.recipe}
    (value,) = space.axes.non_empty()[item.axis] if axes else (keys[item.axis],)
    assert str(value).partition("(")[0] == (item.named or name)


@pytest.mark.parametrize("name", ["quickstart", "weight-vs-unit"])
def test_a_space_is_shown_as_its_file(name: str) -> None:
    assert describe(name) == (SPACES / f"{name}.yaml").read_text()


def test_options_with_their_ranges() -> None:
    def method(*, a: int = 1, b: list[int] | None = None) -> None: ...

    assert [option.allowed for option in hyperparameters(method).values()] == ["int", "list[int] | None"]
    assert "  option temperature: float in (0, inf); 200.0 if not given\n" in describe("grasp")
    assert "  option widths: list[int]; (32, 64, 128) if not given\n" in describe("cnn")
    assert (
        "  option epochs: whole epochs, or a part of the training such as '10%'; '10%' if not given\n"
        in describe("finetune")
    )
    assert "  option value: float; 0.01 if not given\n" in describe("score_below")  # no range


def test_a_name_of_several_kinds_shows_them_all() -> None:
    shown = describe("none")
    assert all(f"{axis} none: " in shown for axis in ("recover", "prepare", "distill"))
    assert all(f"{axis} weight: " in describe("weight") for axis in ("technique", "granularity"))


@pytest.mark.parametrize(
    ("given", "near"), [("rewnd", "rewind"), ("quickstrat", "quickstart"), ("mpl", "mlp")]
)
def test_unknown_names_are_answered_with_the_nearest_of_all_kinds(given: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown name '{given}'; did you mean .*{near}"):
        describe(given)


def test_list_and_show_print_them() -> None:
    listed = CliRunner().invoke(app, ["list", "distillations"])
    assert (
        listed.stdout == "none         the labels alone\nsoft_labels  softened outputs of the dense network\n"
    )
    assert CliRunner().invoke(app, ["show", "quickstart"]).stdout == describe("quickstart")
    assert isinstance(CliRunner().invoke(app, ["show", "quickstrat"]).exception, UsageError)


def test_unknown_kinds_name_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown kind of name 'critera'; did you mean criteria"):
        names("critera")


def test_one_model_of_a_library_is_shown_under_its_name() -> None:
    shown = describe("torchvision.resnet18")
    assert shown.startswith("model torchvision.resnet18: torchvision's resnet18 for images of any channels")
    assert "  option stem: str; 'auto' if not given\n" in shown
    with pytest.raises(UsageError, match=r"'torchvision.resnt18'; did you mean torchvision.resnet18"):
        describe("torchvision.resnt18")
