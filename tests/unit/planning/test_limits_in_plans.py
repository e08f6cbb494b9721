"""Limits in plans: one key for one meaning, texts in tables, and why a limit cannot be met."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.config import TrialConfig
from orchestrator.errors import SpaceError
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.params import amount_columns, amount_text, params
from orchestrator.trial.target_masks import dense_quantities

SPACE = """\
version: 1
axes:
  model: ["cnn(widths=[6, 10])"]
  dataset: [digits]
  technique: [{technique}]
  schedule: ["{schedule}"]
  amount: {amount}
train: {{epochs: 1}}
"""
DENSE = dense_quantities(("cnn(widths=[6, 10])", (1, 8, 8), 10))


def planned(tmp_path: Path, amount: str, technique: str = "structured", schedule: str = "one_shot") -> Plan:
    path = tmp_path / "own.yaml"
    path.write_text(SPACE.format(amount=amount, technique=technique, schedule=schedule))
    return make_plan(load_space(str(path)))


def test_equal_limits_have_one_key_and_are_planned_once(tmp_path: Path) -> None:
    half = DENSE["macs"] // 2
    plan = planned(tmp_path, f'[{{macs: 50%}}, {{macs: 0.5}}, {{macs: {half}}}, {{macs: "{half}"}}]')
    (trial,) = plan.trials
    assert trial.config.prune.limits == (("macs", half),)
    assert trial.config.prune.amount == pytest.approx(0.5, abs=1e-3)
    assert sum(item.count for item in plan.excluded) == 3
    other = planned(tmp_path, "{macs: 49%}")
    assert other.trials[0].key != trial.key
    assert planned(tmp_path, "50%").trials[0].key != trial.key


def test_a_configuration_survives_json_and_the_old_form_is_read(tmp_path: Path) -> None:
    config = planned(tmp_path, "{bytes: 2kB, parameters: 90%}").trials[0].config
    assert TrialConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
    plain = planned(tmp_path, "0.5").trials[0].config
    old = json.loads(json.dumps(asdict(plain)))
    del old["prune"]["limits"]
    assert TrialConfig.from_json(old) == plain
    assert "limits" not in params(plain)


def test_tables_show_the_limit_as_it_was_written(tmp_path: Path) -> None:
    config = planned(tmp_path, "{macs: 50%, bytes: 2kB}").trials[0].config
    assert amount_text(config) == "macs 50%, bytes 2000"
    assert params(config)["amount"] == "{macs: 50%, bytes: 2000}"
    columns = amount_columns(config)
    assert columns["amounts"] == "{macs: 50%, bytes: 2000}"
    assert columns["amount"] == pytest.approx(0.5, abs=1e-3)  # the larger part


def test_a_limit_that_nothing_meets_is_excluded_with_the_least(tmp_path: Path) -> None:
    plan = planned(tmp_path, "[{macs: 0.1%}, {macs: 50%}]")
    assert len(plan.trials) == 1
    (excluded,) = plan.excluded
    assert f"of {DENSE['macs']:,} may be left, and pruning by channel leaves" in excluded.reason


@pytest.mark.parametrize(
    ("technique", "schedule"),
    [("structured", "pq_index"), ("structured", "threshold"), ("weight", "pq_index")],
)
def test_adaptive_schedules_take_no_limit(tmp_path: Path, technique: str, schedule: str) -> None:
    plan = planned(tmp_path, "{macs: 50%}", technique, schedule)
    assert not plan.trials
    assert "decides itself how much goes" in plan.excluded[0].reason


@pytest.mark.parametrize("amount", ["{macs: 0}", "{macs: 120%}", "{bytes: 5 cows}", "[{macs: }]"])
def test_a_bad_limit_is_one_line(tmp_path: Path, amount: str) -> None:
    with pytest.raises(SpaceError, match=r"macs|bytes"):
        planned(tmp_path, amount)


def test_round_to_is_in_the_key_where_it_is_more_than_1(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(SPACE.format(amount="[50%]", technique="structured, weight", schedule="one_shot"))
    plain, one, eight = (
        make_plan(load_space(str(path), sets)) for sets in ([], ["round_to=1"], ["round_to=8"])
    )
    assert [trial.key for trial in plain.trials] == [trial.key for trial in one.trials]
    (trial,) = eight.trials  # weights have no widths
    assert trial.key not in {other.key for other in plain.trials}
    assert "round_to is for units" in eight.excluded[0].reason
    assert params(trial.config)["round_to"] == 8
    assert "round_to" not in params(plain.trials[0].config)
    assert TrialConfig.from_json(json.loads(json.dumps(asdict(trial.config)))) == trial.config


def test_a_count_that_looks_like_a_percentage_is_answered_with_it(tmp_path: Path) -> None:
    assert planned(tmp_path, "{macs: 50}").excluded[0].reason.endswith("at least; or 50%?")
    assert planned(tmp_path, "{macs: 0.1%}").excluded[0].reason.endswith("at least")
