"""Every round is held against its own target: no note where the counts are exact, one where they are not."""

from __future__ import annotations

from typing import get_args

import pytest
from trained import Trained, digits

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig, When
from orchestrator.trial.run import TrialResult, run_trial
from pruning.registry import Registry
from pruning.schedules import rounds_of, schedules, target_after

FIXED = [name for name in schedules if not schedules.get(name).traits.get("adaptive")]
ADAPTIVE = [name for name in schedules if name not in FIXED]
DENSE = DenseConfig("mlp(widths=[32, 16])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
NARROW = DenseConfig("mlp(widths=[4, 4])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))


def walk(prune: Prune, *, dense: DenseConfig = DENSE, when: When = "after") -> TrialResult:
    return run_trial(TrialConfig(dense, prune, "none", "x", when=when), digits(), store=Trained())


def notes(result: TrialResult) -> list[str]:
    """Those on amounts, round by round."""
    return [note for measured in result.rounds for note in measured.notes if "asked for" in note]


def text(name: str, rounds: int = 3) -> str:
    return f"{name}(rounds={rounds})" if rounds_of(schedules.get(name)) > 1 else name


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("amount", [0.0, 0.488, 0.9, 1.0])
@pytest.mark.parametrize(
    ("granularity", "scope"),
    [("weight", "layer"), ("weight", "global"), ("weight", "unit"), ("weight", "erk"), ("unit", "layer")],
)
def test_no_note_where_every_round_lands_on_its_target(
    name: str, amount: float, granularity: str, scope: str
) -> None:
    if granularity == "unit" and amount == 0.9:
        amount = 0.75  # of 32 and 16 units; above, the last one of a layer stays
    result = walk(Prune("magnitude", granularity, scope, text(name), amount))
    assert notes(result) == []
    assert len(result.rounds) == rounds_of(schedules.get(text(name)))


@pytest.mark.parametrize("when", get_args(When))
@pytest.mark.parametrize("name", FIXED)
def test_a_network_that_is_measured_once_is_held_against_the_last_target(name: str, when: When) -> None:
    if when == "during" and not schedules.get(name).traits.get("during"):
        pytest.skip("it does not prune while the network trains")
    assert notes(walk(Prune("magnitude", "weight", "layer", text(name), 0.8), when=when)) == []


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_amount_of_an_adaptive_schedule_is_a_ceiling(name: str) -> None:
    if schedules.get(name).traits.get("scores") or schedules.get(name).traits.get("during"):
        pytest.skip("it is for other criteria, or moments")
    assert notes(walk(Prune("magnitude", "weight", "layer", text(name), 0.9))) == []


def test_targets_by_hand() -> None:
    """Geometric: 1 - 0.512^(t/3) at 0.488; cubic: 0.875 (1 - (1 - t/2)^3)."""

    def targets(name: str, amount: float) -> list[float | None]:
        schedule = schedules.get(name)
        rounds = range(1, rounds_of(schedule) + 1)
        return [target_after(schedule, amount=amount, round=number) for number in rounds]

    assert targets("one_shot", 0.3) == [0.3]
    assert targets("iterative(rounds=3)", 0.488) == pytest.approx([0.2, 0.36, 0.488])
    assert targets("cubic(rounds=2)", 0.875) == pytest.approx([0.765625, 0.875])
    assert targets("pq_index(rounds=2)", 0.9) == [None, None]


def test_a_schedule_that_does_not_say_its_targets_is_held_against_the_amount_at_its_end() -> None:
    others = Registry("schedule")

    @others.register(summary="linear, from another package")
    def linear(pools: object, *, amount: float, round: int, rounds: int = 2) -> None: ...

    schedule = others.get("linear")
    assert target_after(schedule, amount=0.5, round=1) is None
    assert target_after(schedule, amount=0.5, round=2) == 0.5


def test_a_note_names_the_round_in_which_the_last_unit_had_to_stay() -> None:
    """Of 4 units 4 are to go in the third round, and one stays; rounds 1 and 2 are exact."""
    schedule = "iterative(rounds=3)"
    result = walk(Prune("l2", "unit", "layer", schedule, 0.95), dense=NARROW)
    # 1 - 0.05^(1/3) = 0.6316, of 4 units 2.53: 3; 1 - 0.05^(2/3) = 0.8643: 3; 0.95: 4.
    assert [measured.measurement.amount for measured in result.rounds] == [0.75, 0.75, 0.75]
    assert notes(result) == ["round 3: asked for 0.95, achieved: hidden.0 0.7500, hidden.1 0.7500"]


def test_one_unit_too_few_is_a_deviation() -> None:
    result = walk(Prune("l2", "unit", "layer", "one_shot", 0.95), dense=NARROW)
    assert notes(result) == ["asked for 0.95, achieved: hidden.0 0.7500, hidden.1 0.7500"]


def test_columns_that_are_too_few_for_a_block_stay_and_are_noted() -> None:
    """2:4 of rows of 64, 6 and 6 weights: of each row of 6 the last two stay."""
    six = DenseConfig("mlp(widths=[6, 6])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
    result = walk(Prune("magnitude", "nm", "layer", "one_shot", 0.5), dense=six)
    assert notes(result) == ["asked for 0.5, achieved: hidden.1.weight 0.3333, output.weight 0.3333"]
