"""The plans of all named spaces: no two runs have one name, and no points are equal but those of slp."""

from __future__ import annotations

from functools import cache

import pytest

from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.run_names import dense_name, trial_name, varied_axes
from orchestrator.space.space import load_space, names

FEW = {"full-grid": ("model=slp,cnn", "amount=0,0.5,0.99", "seed=0,1")}  # of its 3960 points
SPACES = [name for name in names() if name != "transfer"]  # which needs a network of the store


@cache
def planned(space: str) -> Plan:
    return make_plan(load_space(space, FEW.get(space, ())))


@pytest.mark.parametrize("space", SPACES)
def test_no_two_runs_of_a_named_space_have_one_name(space: str) -> None:
    plan = planned(space)
    varied = varied_axes(plan.space)
    for run_names in (
        [trial_name(trial.config, varied) for trial in plan.trials],
        [dense_name(config, varied) for config in plan.dense],
    ):
        assert len(set(run_names)) == len(run_names)


def test_only_the_full_grid_of_the_named_spaces_has_equal_points() -> None:
    """Its slp has one layer: there weight is unstructured, and neuron is structured."""
    equal = {
        space: {(item.left_out, item.planned) for item in planned(space).excluded if item.planned}
        for space in SPACES
    }
    slp = {("unstructured", "weight"), ("structured", "neuron")}
    assert equal == {space: slp if space == "full-grid" else set() for space in SPACES}
