"""Options of methods as axes: expanded for a grid, and refused where nothing takes them."""

from __future__ import annotations

import json
from pathlib import Path
from re import fullmatch

import pytest

from orchestrator.errors import SpaceError
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space import hyperparameters
from orchestrator.space import space as spaces
from orchestrator.space.space import Space, load_space
from orchestrator.space.values import Range

AXES = "axes:\n  model: mlp\n  dataset: digits\n  amount: 0.5\n"


def loaded(tmp_path: Path, text: str, *sets: str, head: str = "") -> Space:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{head}{AXES}{text}")
    return load_space(str(file), sets)


def planned(tmp_path: Path, text: str, *sets: str) -> Plan:
    return make_plan(loaded(tmp_path, text, *sets))


def schedules(plan: Plan) -> list[str]:
    return [trial.config.prune.schedule for trial in plan.trials]


def test_a_grid_has_every_method_with_every_combination_of_its_options(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        "  schedule: [one_shot, pq_index(rounds=2)]\n  pq_index.gamma: [1, 3]\n  pq_index.p: [0.25, 0.5]\n",
    )
    text = "pq_index(p={}, q=1.0, eta=0.0, gamma={}, beta=0.9, published=False, rounds=2)"
    expected = ["one_shot", *(text.format(p, gamma) for gamma in ("1.0", "3.0") for p in ("0.25", "0.5"))]
    assert schedules(found) == expected
    assert found.excluded == ()


def test_an_option_as_an_axis_is_the_same_trial_as_one_in_the_text(tmp_path: Path) -> None:
    axis = planned(
        tmp_path,
        "  schedule: pq_index\n  pq_index.gamma: [3]\n  recover: finetune\n  finetune.epochs: [2, 25%]\n",
    )
    text = planned(
        tmp_path, "  schedule: pq_index(gamma=3)\n  recover: [finetune(epochs=2), finetune(epochs='25%')]\n"
    )
    assert [trial.key for trial in axis.trials] == [trial.key for trial in text.trials]


def test_the_top_level_recovery_takes_options_too(tmp_path: Path) -> None:
    file = tmp_path / "top.yaml"
    file.write_text(f"recover: finetune\n{AXES}  finetune.epochs: [1, 2]\n")
    found = make_plan(load_space(str(file)))
    assert [trial.config.recover for trial in found.trials] == [
        f"finetune(epochs={n}, lr=1.0)" for n in (1, 2)
    ]


def test_every_axis_of_methods_has_options(tmp_path: Path) -> None:
    text = (
        "  criterion: pivoted_qr\n  granularity: channel\n  scope: layer\n  prepare: group_lasso\n"
        "  recover: finetune\n"
        "  distill: soft_labels\n  pivoted_qr.relative: [true, false]\n  group_lasso.strength: [0.1, 0.2]\n"
        "  soft_labels.weight: [0.25, 0.75]\n"
    )
    found = planned(tmp_path, text)
    assert len(found.trials) == 8
    assert {trial.config.prepare.partition("strength=")[2][:3] for trial in found.trials} == {"0.1", "0.2"}


def test_a_combination_that_the_registry_refuses_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found = planned(tmp_path, "  schedule: pq_index\n  pq_index.p: [0.5, 1]\n  pq_index.q: [1, 2]\n")
    assert len(found.trials) == 3
    assert [(item.reason, item.count) for item in found.excluded] == [
        ("schedule pq_index: p is 1.0 and q is 1.0; p must be below q", 1)
    ]


@pytest.mark.parametrize("given", ["[0, 1]", "[0.5]", "{low: 0.1, high: 0.5}"])
def test_lengths_that_are_none_are_refused_where_they_are_read(given: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"no length; (give whole|write that part)"):
        planned(tmp_path, f"  recover: finetune\n  finetune.epochs: {given}\n")


@pytest.mark.parametrize(
    ("text", "sets", "expected"),
    [
        (
            "  pq_index.gamma: [1, 3]\n",
            (),
            "mine.yaml:5: axes.pq_index.gamma: pq_index is no schedule of this space, which has one_shot; "
            "add it there, or leave pq_index.gamma out",
        ),
        ("  nm.n: 1\n", (), "nm is no granularity of this space, which has none"),
        ("  pq_index.gama: 1\n", (), "mine.yaml:5: unknown key 'pq_index.gama'; did you mean pq_index.gamma"),
        ("  pq_indx.gamma: 1\n", (), "unknown key 'pq_indx.gamma'; did you mean pq_index.gamma"),
        ("  METHOD.OPTION: 1\n", (), "METHOD.OPTION stands for a method and one of its options"),
        (
            "  schedule: pq_index\n  pq_index.gamma: 0\n",
            (),
            "axes.pq_index.gamma: gamma is 0.0; it must be in (0, inf)",
        ),
        ("  schedule: pq_index\n  pq_index.gamma: []\n", (), "no value is given"),
        ("  schedule: pq_index\n  pq_index.gamma: [[1]]\n", (), "[1] is no number, text or boolean"),
        ("  schedule: pq_index\n  pq_index.rounds: 1.5\n", (), "a value of type int is needed"),
        ("  schedule: pq_index\n  pq_index.rounds: true\n", (), "a value of type int is needed"),
        ("  schedule: threshold\n  threshold.unit: {low: 1, high: 2}\n", (), "a value of type str is needed"),
        (
            "",
            ("pq_index.gamma=1,3",),
            "--set pq_index.gamma=1,3: axes.pq_index.gamma: pq_index is no schedule",
        ),
        (
            "",
            ("pq_index.gama=1",),
            "--set pq_index.gama=1: unknown key 'pq_index.gama'; did you mean pq_index.gamma",
        ),
        ("", ("search.trials=1,2",), "search.trials takes one value"),
    ],
)
def test_bad_options(tmp_path: Path, text: str, sets: tuple[str, ...], expected: str) -> None:
    with pytest.raises(SpaceError) as caught:
        loaded(tmp_path, text, *sets)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_replaces_options_and_takes_those_along_whose_method_goes(tmp_path: Path) -> None:
    text = "  schedule: [one_shot, pq_index]\n  pq_index.gamma: [1, 3]\n"
    assert len(planned(tmp_path, text, "pq_index.gamma=1,3,5").trials) == 4
    assert schedules(planned(tmp_path, text, "schedule=one_shot")) == ["one_shot"]
    assert len(planned(tmp_path, text, "schedule=pq_index(rounds=2)").trials) == 2
    with pytest.raises(SpaceError, match="pq_index is no schedule"):
        loaded(tmp_path, text, "pq_index.gamma=1", "schedule=one_shot")


def test_a_search_takes_ranges_of_options(tmp_path: Path) -> None:
    text = "  schedule: pq_index\n  pq_index.gamma: {low: 1, high: 9}\n  pq_index.rounds: {low: 2, high: 4}\n"
    found = loaded(tmp_path, text, head="search: {method: random, trials: 2}\n").axes.options
    assert found == {"pq_index.gamma": Range(1.0, 9.0), "pq_index.rounds": Range(2, 4)}
    assert isinstance(found["pq_index.gamma"].low, float)
    assert found["pq_index.rounds"].is_integer


def test_too_many_combinations_are_refused_before_they_are_made(tmp_path: Path) -> None:
    text = "  schedule: pq_index\n  pq_index.rounds: 1..9999\n  pq_index.gamma: 1..9999\n"
    with pytest.raises(SpaceError, match="99980001 = 99,980,001 points; at most 1,000,000"):
        loaded(tmp_path, text)


def test_the_schema_names_every_option() -> None:
    axes = spaces.json_schema()["$defs"]["Axes"]
    (pattern,) = axes["patternProperties"]
    assert axes["additionalProperties"] is False
    assert "METHOD.OPTION" not in json.dumps(axes)
    for name in ("pq_index.gamma", "finetune.epochs", "nm.n", "group_lasso.strength", "soft_labels.weight"):
        assert name in hyperparameters.names()
        assert fullmatch(pattern, name)
    assert not fullmatch(pattern, "pq_index.gama")
