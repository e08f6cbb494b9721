"""What tells settings apart, and what they are called."""

from __future__ import annotations

import pytest
from result_rows import frame, row

from orchestrator.analysis.settings import join_labels, method_label, setting_columns, settings


def test_settings_are_in_the_order_of_the_plan_and_seeds_together() -> None:
    results = frame(*(row(t, a, s) for t in ("weight", "neuron") for a in (0.9, 0.5) for s in (1, 0)))
    found = [(setting["technique"], setting["amount"], len(rows)) for setting, rows in settings(results)]
    assert found == [("weight", 0.9, 2), ("weight", 0.5, 2), ("neuron", 0.9, 2), ("neuron", 0.5, 2)]


def test_what_was_not_swept_is_not_shown_save_what_names_a_setting() -> None:
    always = ["model", "dataset", "batch_size", "technique"]
    plain = frame(row(seed=0, **{"train.lr": 0.1}), row(seed=1, **{"train.lr": 0.1}))
    assert setting_columns(plain) == [*always, "amount"]
    crossed = [row(**{"train.lr": lr, "recover": how}) for lr in (0.1, 0.2) for how in ("none", "finetune")]
    assert setting_columns(frame(*crossed)) == [*always, "recover", "train.lr", "amount"]


def test_a_method_is_called_by_what_was_done() -> None:
    setting = {"model": "slp", "technique": "weight", "recover": "none", "when": "after", "amount": 0.5}
    assert method_label(setting) == "weight"
    assert method_label({**setting, "recover": "finetune"}) == "weight, finetune"


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["50%"], "50%"),
        (["0%", "0% (trained on)"], "0%, or trained on"),
        (["0% (trained on)", "0% (not trained)"], "0% (trained on) or 0% (not trained)"),
        (["90%", "by pq_index, at most 90%"], "90% or by pq_index, at most 90%"),
    ],
)
def test_labels_of_one_amount_are_told_in_few_words(labels: list[str], text: str) -> None:
    assert join_labels(labels) == text
