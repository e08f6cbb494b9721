"""Names of runs tell apart what a sweep tells apart, and say how much goes as tables do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.planning.plan import make_plan
from orchestrator.planning.plan_file import load_planned_rows
from orchestrator.planning.resume import plan_text
from orchestrator.planning.run_names import dense_name, trial_name, varied_axes
from orchestrator.space.space import load_space
from orchestrator.trial.params import amount_text

PRUNE = Prune("magnitude", "weight", "global", "one_shot", 0.5)
TRIAL = TrialConfig(DenseConfig("mlp", "digits", 64, 0, Train(), Numerics()), PRUNE, "none", "unstructured")


def named(tmp_path: Path, axes: str) -> list[str]:
    file = tmp_path / "mine.yaml"
    file.write_text(f"axes: {{{axes}}}\n")
    plan = make_plan(load_space(str(file)))
    varied = varied_axes(plan.space)
    return [
        *(dense_name(config, varied) for config in plan.dense),
        *(trial_name(trial.config, varied) for trial in plan.trials),
    ]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("model: mlp, dataset: digits, amount: 90%", ["dense mlp seed 0", "weight 90% mlp seed 0"]),
        (
            "model: mlp, dataset: digits, amount: 90%, recover: [rewind, finetune], "
            "schedule: [one_shot, iterative(rounds=3)]",
            [
                "dense mlp seed 0",
                "weight 90% mlp one_shot rewind seed 0",
                "weight 90% mlp one_shot finetune seed 0",
                "weight 90% mlp iterative(rounds=3) rewind seed 0",
                "weight 90% mlp iterative(rounds=3) finetune seed 0",
            ],
        ),
        (
            "model: mlp, dataset: digits, amount: 100%, criterion: magnitude, "
            "schedule: [threshold(value=0.5), pq_index]",
            [
                "dense mlp seed 0",
                "magnitude by threshold mlp threshold(value=0.5) seed 0",
                "magnitude by pq_index mlp pq_index seed 0",
            ],
        ),
        (
            "model: [mlp, 'mlp(widths=[8])'], dataset: digits, amount: 0.5, batch_size: [32, 64]",
            [
                "dense mlp batch 32 seed 0",
                "dense mlp batch 64 seed 0",
                "dense mlp(widths=[8]) batch 32 seed 0",
                "dense mlp(widths=[8]) batch 64 seed 0",
                "weight 50% mlp batch 32 seed 0",
                "weight 50% mlp batch 64 seed 0",
                "weight 50% mlp(widths=[8]) batch 32 seed 0",
                "weight 50% mlp(widths=[8]) batch 64 seed 0",
            ],
        ),
        (
            "model: mlp, dataset: digits, amount: 0, criterion: [magnitude, snip], "
            "granularity: [weight, unit], scope: layer, recover: finetune, finetune.epochs: [1, 2]",
            ["dense mlp seed 0"]
            + [
                f"{criterion}/{granularity} 0% (trained on) mlp finetune(epochs={epochs}) seed 0"
                for criterion in ("magnitude", "snip")
                for granularity in ("weight", "unit")
                for epochs in (1, 2)
            ],
        ),
    ],
)
def test_names_hold_what_the_space_varies(axes: str, expected: list[str], tmp_path: Path) -> None:
    assert named(tmp_path, axes) == expected


@pytest.mark.parametrize(
    ("prune", "rest", "text"),
    [
        ({"amount": 0.925}, {}, "92.5%"),
        ({"amount": 0.0}, {}, "0%"),
        ({"amount": 0.0}, {"recover": "refit(images=500)"}, "0%"),
        ({"amount": 0.0}, {"recover": "finetune(epochs=1, lr=1.0)"}, "0% (trained on)"),
        ({"amount": 0.0}, {"recover": "lr_rewind(epochs='100%')"}, "0% (trained on)"),
        ({"amount": 0.0}, {"prepare": "group_lasso"}, "0% (trained on)"),
        ({"amount": 0.0}, {"recover": "rewind(to=0)"}, "0% (trained again)"),
        ({"amount": 0.0}, {"recover": "reinit"}, "0% (trained again)"),
        ({"amount": 0.0}, {"when": "during"}, "0% (trained again)"),
        ({"amount": 0.0}, {"when": "init", "recover": "rewind(to=0)"}, "0% (trained again)"),
        ({"amount": 0.0}, {"when": "init"}, "0% (not trained)"),
        ({"amount": 0.5}, {"recover": "rewind(to=0)"}, "50%"),
        ({"amount": 1.0, "schedule": "pq_index(rounds=30)"}, {}, "by pq_index"),
        ({"amount": 0.9, "schedule": "threshold(value=1.0)"}, {}, "by threshold, at most 90%"),
        ({"amount": 0.9, "schedule": "iterative(rounds=3)"}, {}, "90%"),
    ],
)
def test_how_much_goes_in_words(prune: dict[str, object], rest: dict[str, object], text: str) -> None:
    config = replace(TRIAL, prune=replace(PRUNE, **prune), **rest)  # type: ignore[arg-type]
    assert amount_text(config) == text


def test_a_plans_record_holds_the_text_and_the_number() -> None:
    plan = make_plan(load_space("four-techniques"))
    rows = load_planned_rows(plan_text(plan))
    assert {(row["amount"], row["amount_text"]) for row in rows} >= {(0.0, "0% (trained on)"), (0.95, "95%")}
    assert {row["technique"] for row in rows} == {"weight", "unstructured", "neuron", "structured"}


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ("criterion: magnitude", ["magnitude"]),
        ("criterion: magnitude, granularity: unit, scope: layer", ["magnitude"]),
        ("granularity: [weight, unit], scope: layer", ["magnitude/weight", "magnitude/unit"]),
        ("criterion: [magnitude, random], scope: [layer, global]",
         ["magnitude/layer", "magnitude/global", "random/layer", "random/global"]),
        ("criterion: ['grasp(temperature=100.0)', grasp]", ["grasp(temperature=100.0)", "grasp"]),
        ("technique: [unstructured, neuron]", ["unstructured", "neuron"]),
    ],
)  # fmt: skip
def test_labels_are_in_the_words_of_the_space(axes: str, labels: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"axes: {{model: mlp, dataset: digits, amount: 0.5, {axes}}}\n")
    rows = load_planned_rows(plan_text(make_plan(load_space(str(file)))))
    assert [row["technique"] for row in rows] == labels
    assert all({"criterion", "granularity", "scope", "schedule", "recover"} <= row.keys() for row in rows)
