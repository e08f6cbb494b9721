"""`allocate` in plans: one key for one method, names in tables, and what it does not go with."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpaceError
from orchestrator.planning.plan import Plan, group_of, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.params import params

SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[8, 6])"]
  dataset: [digits]
  criterion: [{criterion}]
  granularity: [weight]
  {how}
  amount: [50%]
train: {{epochs: 1}}
"""
FOUR = "allocate: [uniform, global, per_mac, sensitivity]"


def planned(tmp_path: Path, how: str, *sets: str, criterion: str = "magnitude", rest: str = "") -> Plan:
    path = tmp_path / "own.yaml"
    path.write_text(SPACE.format(how=how, criterion=criterion) + rest)
    return make_plan(load_space(str(path), sets))


def test_uniform_is_scope_layer_and_global_is_scope_global(tmp_path: Path) -> None:
    allocated = planned(tmp_path, FOUR)
    assert [trial.config.prune.scope for trial in allocated.trials] == [
        "layer",
        "global",
        "per_mac",
        "sensitivity",
    ]
    scoped = planned(tmp_path, "scope: [layer, global]")
    assert [trial.key for trial in scoped.trials] == [trial.key for trial in allocated.trials[:2]]
    assert len({trial.key for trial in allocated.trials}) == 4
    assert "allocate" not in params(allocated.trials[2].config)
    assert params(allocated.trials[2].config)["scope"] == "per_mac"


def test_tables_name_several_allocations(tmp_path: Path) -> None:
    plan = planned(tmp_path, FOUR)
    assert [trial.config.technique for trial in plan.trials] == [
        f"magnitude/{name}" for name in ("uniform", "global", "per_mac", "sensitivity")
    ]
    (single,) = planned(tmp_path, "allocate: per_mac").trials
    assert single.config.technique == "magnitude"
    assert single.config.prune.scope == "per_mac"


def test_points_of_a_search_are_named_by_their_allocation(tmp_path: Path) -> None:
    search = "search: {method: random, trials: 4}\n"
    plan = planned(tmp_path, FOUR, rest=search)
    assert {trial.config.technique for trial in plan.trials} == {
        f"magnitude/{name}" for name in ("uniform", "global", "per_mac", "sensitivity")
    }


def test_an_allocation_takes_the_place_of_a_techniques_scope(tmp_path: Path) -> None:
    plan = planned(tmp_path, "allocate: [uniform, per_mac]", "technique=weight,unstructured")
    assert [(trial.config.technique, trial.config.prune.scope) for trial in plan.trials] == [
        ("weight/uniform", "layer"),
        ("weight/per_mac", "per_mac"),
    ]
    (excluded,) = plan.excluded  # unstructured differs from weight in its scope alone
    assert excluded.count == 2
    assert "planned once" in excluded.reason


def test_both_are_refused_and_one_set_replaces_the_other(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="give allocate or scope, not both: uniform is scope layer"):
        planned(tmp_path, "scope: layer\n  allocate: uniform")
    with pytest.raises(SpaceError, match="unknown allocation 'per_max'; did you mean per_mac"):
        planned(tmp_path, "allocate: per_max")
    (trial,) = planned(tmp_path, "scope: [layer, global]", "allocate=per_mac").trials
    assert trial.config.prune.scope == "per_mac"
    (trial,) = planned(tmp_path, "allocate: [per_mac, uniform]", "scope=erk").trials
    assert trial.config.prune.scope == "erk"


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        (["schedule=pq_index"], ["allocate per_mac: schedule 'pq_index' decides itself"] * 1),
        (["granularity=nm"], ["allocate per_mac: granularity 'nm' removes a fixed part of every row"]),
        (["when=init"], []),
        (["when=during"], []),
        (["prepare=group_lasso(epochs=1)"], []),
        (["round_to=2", "granularity=unit"], []),
        (["schedule=cubic(rounds=2)"], []),
    ],
)
def test_what_a_score_per_mac_goes_with(tmp_path: Path, settings: list[str], reasons: list[str]) -> None:
    plan = planned(tmp_path, "allocate: per_mac", *settings)
    assert [
        item.reason[: len(reason)] for item, reason in zip(plan.excluded, reasons, strict=True)
    ] == reasons
    assert len(plan.trials) == 1 - len(reasons)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            ["when=init"],
            "allocate sensitivity is measured on the trained dense network: it needs when: after",
        ),
        (["when=during", "schedule=cubic"], "allocate sensitivity is measured on the trained dense network"),
        (
            ["prepare=group_lasso(epochs=1)"],
            "allocate sensitivity is measured on the dense network, and prepare",
        ),
        (["schedule=threshold"], "allocate sensitivity: schedule 'threshold' decides itself"),
        (["granularity=nm"], "allocate sensitivity: granularity 'nm' removes a fixed part of every row"),
    ],
)
def test_what_a_sensitivity_does_not_go_with(tmp_path: Path, settings: list[str], reason: str) -> None:
    plan = planned(tmp_path, "allocate: sensitivity", *settings)
    assert not plan.trials
    assert plan.excluded[0].reason.startswith(reason)


def test_an_exclusion_knows_a_scope_by_both_names(tmp_path: Path) -> None:
    rule = "exclude: {allocate: uniform}\n"
    assert len(planned(tmp_path, FOUR, rest=rule).trials) == 3
    assert len(planned(tmp_path, "scope: [layer, global, erk]", rest=rule).trials) == 2


def test_scores_over_costs_are_not_equal_by_their_order_alone(tmp_path: Path) -> None:
    # The squares of the weights are in the order of the weights, and their quotients by a cost are not.
    for how, count in (("allocate: global", 1), ("allocate: per_mac", 2), ("allocate: sensitivity", 1)):
        assert len(planned(tmp_path, how, criterion="magnitude, l2").trials) == count
    # One layer that competes has no other: every allocation is the same.
    alone = planned(tmp_path, FOUR, rest="only: [hidden.0]\n")
    assert len(alone.trials) == 1


def test_rules_that_stop_may_compare_within_an_allocation(tmp_path: Path) -> None:
    plan = planned(tmp_path, FOUR)
    groups = [group_of(trial.config, ("allocate",)) for trial in plan.trials]
    assert len(set(groups)) == 4
