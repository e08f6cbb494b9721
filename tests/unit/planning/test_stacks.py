"""Which runs of a plan may be stacked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.planning.stacks import conflict_of, stack_group, summarize_stacks, task_group

DENSE = DenseConfig("mlp(widths=[16])", "digits", 32, 0, Train(epochs=4), Numerics())
PRUNE = Prune("magnitude", "weight", "global", "one_shot", 0.5)
TRIAL = TrialConfig(DENSE, PRUNE, "finetune(epochs=2)", "weight")


def test_seeds_amounts_criteria_and_recoveries_of_one_length_go_together() -> None:
    alike = [
        replace(TRIAL, dense=replace(DENSE, seed=3)),
        replace(TRIAL, prune=replace(PRUNE, amount=0.9)),
        replace(TRIAL, prune=replace(PRUNE, criterion="random", granularity="unit", scope="layer")),
        replace(TRIAL, recover="lr_rewind(epochs=2)"),
        replace(TRIAL, recover="finetune(epochs=2, lr=0.1)"),
    ]
    assert {stack_group(config) for config in alike} == {stack_group(TRIAL)}
    assert stack_group(DENSE) == stack_group(replace(DENSE, seed=1)) != stack_group(TRIAL)


@pytest.mark.parametrize(
    "other",
    [
        replace(TRIAL, recover="finetune(epochs=3)"),
        replace(TRIAL, prune=replace(PRUNE, schedule="iterative(rounds=2)")),
        replace(TRIAL, dense=replace(DENSE, batch_size=64)),
        replace(TRIAL, dense=replace(DENSE, train=Train(epochs=4, lr=0.1))),
        replace(TRIAL, dense=replace(DENSE, model="mlp(widths=[17])")),
        replace(TRIAL, dense=replace(DENSE, dense_code="lab=1")),
        replace(TRIAL, when="init"),
    ],
)
def test_what_differs_in_shape_or_recipe_does_not(other: TrialConfig) -> None:
    assert stack_group(other) not in (None, stack_group(TRIAL))


def test_trials_that_train_nothing_go_together_with_those_of_their_network() -> None:
    first = replace(TRIAL, recover="none")
    group = task_group(first)
    assert group is not None
    for alike in (
        replace(first, prune=replace(PRUNE, amount=0.9)),
        replace(first, prune=replace(PRUNE, criterion="random", schedule="iterative(rounds=2)")),
    ):
        assert task_group(alike) == group
    assert task_group(replace(first, dense=replace(DENSE, seed=1))) not in (None, group)
    assert task_group(first, competes=True) is None
    large = replace(DENSE, model="mlp(widths=[4000, 4000])")  # 16 M weights, 540 images
    for config in (large, replace(DENSE, model="cnn(widths=[4])")):
        assert task_group(replace(first, dense=config)) is None
    for trains in (TRIAL, replace(first, prepare="group_lasso"), replace(first, when="during")):
        assert task_group(trains) == stack_group(trains)


@pytest.mark.parametrize(
    "alone",
    [
        replace(TRIAL, recover="none"),
        replace(TRIAL, recover="refit"),
        replace(TRIAL, recover="set", when="init"),
        replace(TRIAL, recover="finetune(epochs=2, on='cut')"),
        replace(TRIAL, distill="soft_labels"),
        replace(TRIAL, prepare="group_lasso"),
        replace(TRIAL, prune=replace(PRUNE, criterion="movement"), when="during"),
        replace(TRIAL, dense=replace(DENSE, model="cnn(widths=[4])")),
        replace(TRIAL, dense=replace(DENSE, model="mlp(widths=[4000, 4000])")),
    ],
)
def test_what_a_stack_would_not_help_runs_by_itself(alone: TrialConfig) -> None:
    assert stack_group(alone) is None


def test_trials_that_compete_are_stacked_by_their_seeds_alone() -> None:
    """A rule stops a trial by those that ended before it; those of one stack end together."""
    other_seed = replace(TRIAL, dense=replace(DENSE, seed=1))
    other_setting = replace(TRIAL, prune=replace(PRUNE, amount=0.9))
    assert stack_group(other_seed, competes=True) == stack_group(TRIAL, competes=True)
    assert stack_group(other_setting, competes=True) != stack_group(TRIAL, competes=True)


def test_a_summary_counts_what_another_run_goes_with() -> None:
    cnn = replace(DENSE, model="cnn(widths=[4])")
    single = replace(TRIAL, recover="finetune(epochs=3)")
    summaries = summarize_stacks([DENSE, replace(DENSE, seed=1), TRIAL, single, cnn])
    assert [(row.model, row.count, row.total) for row in summaries] == [
        (DENSE.model, 2, 4),
        (cnn.model, 0, 1),
    ]
    assert summaries[1].conflict == conflict_of(cnn) == "layers that are not linear run no faster in a stack"
