"""Sensitivities: what is measured, that it is shared, and the trials that go by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from trained import Trained, digits, trained

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data.loading import Split
from orchestrator.data.scaled_images import PixelScale, ScaledImages
from orchestrator.trial.context import make_context
from orchestrator.trial.run import run_trial
from orchestrator.trial.sensitivity import (
    GroupSensitivity,
    Question,
    Sensitivity,
    chosen_images,
    find_sensitivity,
    question_of,
    read_sensitivity,
)
from orchestrator.trial.target_masks import dense_quantities
from pruning.target_amounts import count_limits

DENSE = DenseConfig("cnn(widths=[6, 10])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=256))


def trial(
    granularity: str, scope: str = "sensitivity", schedule: str = "one_shot", **limits: float
) -> TrialConfig:
    counts = count_limits(limits, dense_quantities((DENSE.model, (1, 8, 8), 10)))
    prune = Prune("l2", granularity, scope, schedule, 0.5, limits=tuple(counts.items()))
    return TrialConfig(DENSE, prune, "none", "x")


class Memory:
    """A store that counts how often it is asked and given an answer."""

    def __init__(self) -> None:
        self.answers: dict[Question, Sensitivity] = {}
        self.asked = 0

    def sensitivity(self, question: Question) -> Sensitivity | None:
        self.asked += 1
        return self.answers.get(question)

    def add_sensitivity(self, sensitivity: Sensitivity) -> None:
        self.answers[sensitivity.question] = sensitivity


def measured(config: TrialConfig, store: Memory | None = None) -> Sensitivity:
    context = replace(make_context(config, digits()), dense_state=trained(DENSE).last.state)
    return find_sensitivity(context, store)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_the_loss_is_that_of_the_network_without_the_lowest_of_one_layer(granularity: str) -> None:
    context, data = make_context(trial(granularity), digits()), digits().validation
    sensitivity = measured(trial(granularity))
    assert sensitivity.images == len(data) == 180
    for group in sensitivity.groups:
        net = context.build_module(trained(DENSE).last.state).eval()
        layer = net.get_submodule(group.name.removesuffix(".weight"))
        weight = layer.get_parameter("weight")
        count = int(0.3 * group.size + 0.5)
        with torch.no_grad():
            if granularity == "weight":
                weight.view(-1)[weight.abs().flatten().argsort()[:count]] = 0
            else:  # a channel of conv n is a filter, its norm's entries and what the next layer reads
                index = int(group.name.split(".")[1])
                norm = net.get_submodule(f"blocks.{index}.norm")
                reader = net.get_submodule("blocks.1.conv" if index == 0 else "output").get_parameter(
                    "weight"
                )
                score = weight.square().flatten(1).sum(1) + reader.square().transpose(0, 1).flatten(1).sum(1)
                lowest = score.argsort()[:count]
                for tensor in (weight, norm.get_parameter("weight"), norm.get_parameter("bias")):
                    tensor[lowest] = 0
                reader[:, lowest] = 0
            logits = net(data.images)
        found = group.at(0.3)
        assert found is not None
        assert found[0] == pytest.approx(float(functional.cross_entropy(logits, data.labels)), abs=1e-6)
        assert found[1] == pytest.approx(float((logits.argmax(1) == data.labels).double().mean()))
        assert group.removed[0] == 0
        assert group.losses[0] == pytest.approx(trained(DENSE).last.measurement.val_loss)


def test_units_keep_one_and_a_tenth_of_few_is_none() -> None:
    first, second = measured(trial("channel")).groups
    assert (first.name, first.size, first.macs) == ("blocks.0.conv", 6, 9 * 6 * 64)
    assert first.removed == (0, 1, 2, 3, 4, 5)  # of 6: 0.6, 1.8, 3, 4.2, 5.4, and all but one
    assert second.removed == (0, 1, 3, 5, 7, 9)
    assert second.at(0.1) == (second.losses[1], second.accuracies[1])
    assert second.at(0.2) is None
    four = replace(first, size=4, removed=(0, 1, 2, 3), losses=(1.0,) * 4, accuracies=(0.5,) * 4)
    assert four.at(0.1) is None


def test_one_measurement_is_for_all_trials_of_a_question_and_is_read_as_it_was_written() -> None:
    store = Memory()
    first = measured(trial("channel", macs=0.5), store)
    assert read_sensitivity(first.to_text()) == first
    stored = replace(first, images=7)  # another object, by which it is seen that it was read
    store.answers = {first.question: stored}
    for config in (
        trial("channel", "per_mac"),
        trial("channel", schedule="iterative(rounds=2)", parameters=0.4),
        replace(trial("channel"), recover="finetune(epochs=1, lr=1.0)"),
    ):
        assert question_of(config) == first.question
        assert measured(config, store) is stored
    assert measured(trial("weight"), store).question != first.question
    other = replace(trial("channel"), prune=replace(trial("channel").prune, criterion="l1"))
    assert question_of(other).digest != first.question.digest


@pytest.mark.parametrize("granularity", ["channel", "unit", "weight"])
def test_a_stored_table_of_another_network_is_measured_anew(granularity: str) -> None:
    store = Memory()
    first = measured(trial(granularity), store)
    fitting = replace(first, images=7)
    store.answers = {first.question: fitting}
    assert measured(trial(granularity), store) is fitting
    row = first.groups[0]
    for groups in (first.groups[1:], (replace(row, size=row.size + 1), *first.groups[1:])):
        store.answers = {first.question: replace(first, groups=groups)}
        assert measured(trial(granularity), store) == first
        assert store.answers[first.question] == first


def test_losses_near_that_of_guessing_say_nothing_and_the_first_part_always_counts() -> None:
    # Guessing among 10 classes costs ln 10 = 2.30; halfway from 0.30 that is 1.30.
    group = GroupSensitivity("a", 10, 9, (0, 1, 3, 5, 7), (0.3, 0.4, 1.2, 1.4, 2.2), (1.0,) * 5)
    assert group.curve(10).removed == (0, 1, 3, 5)  # 1.4 is the first above, and counts
    assert group.curve(1000).removed == (0, 1, 3, 5, 7)  # of 1000 classes halfway is 3.6
    assert replace(group, losses=(0.3, 2.9, 2.3, 2.3, 2.3)).curve(10).removed == (0, 1)
    assert replace(group, removed=(0,), losses=(0.3,)).curve(10).removed == (0,)


def test_of_many_images_some_are_looked_at_and_bytes_stay_bytes() -> None:
    pixels = torch.arange(7000, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(-1, 1, 1, 1)
    scale = PixelScale(255, torch.zeros(1), torch.ones(1))
    scaled = ScaledImages(pixels, torch.arange(7000), scale, torch.device("cpu"))
    labels = torch.arange(7000)
    few, plain = chosen_images(Split(scaled, labels)), chosen_images(Split(scaled[labels], labels))
    assert len(few) == len(few.labels.unique()) == 5000
    assert isinstance(few.images, ScaledImages)
    assert torch.equal(few.labels, plain.labels)
    assert torch.equal(few.images[torch.arange(5000)], plain.images[torch.arange(5000)])
    assert torch.equal(plain.images.flatten() * 255, (few.labels % 256).float())  # each with its label
    split = Split(scaled[labels[:5000]], labels[:5000])
    assert chosen_images(split) is split


def test_infinite_losses_are_written_and_a_changed_text_is_refused() -> None:
    sensitivity = measured(trial("channel"))
    group = replace(sensitivity.groups[0], losses=(1.0, float("inf"), *sensitivity.groups[0].losses[2:]))
    text = replace(sensitivity, groups=(group,)).to_text()
    assert read_sensitivity(text).groups == (group,)
    for changed in (text.replace("blocks", "blocs"), "[]", "{}", "5", "{", text[:-9]):
        with pytest.raises(ValueError):
            read_sensitivity(changed)


@pytest.mark.parametrize("granularity", ["channel", "unit", "weight"])
@pytest.mark.parametrize("scope", ["per_mac", "sensitivity"])
def test_limits_are_met_from_below_and_land_alike(granularity: str, scope: str) -> None:
    config = trial(granularity, scope, macs=0.6)
    result = run_trial(config, digits(), store=Trained(), sensitivities=Memory())
    measurement = result.last.measurement
    left = measurement.macs_effective if granularity == "weight" else measurement.macs_physical
    ((_, limit),) = config.prune.limits
    # At most one filter of the first layer below: 9 * 64 own, and 9 * 10 * 16 of what reads it.
    assert limit - 2016 < left <= limit


def test_rounds_meet_the_limit_in_the_last_and_a_stored_answer_gives_the_same_masks() -> None:
    config, store = trial("channel", schedule="iterative(rounds=3)", macs=0.4), Memory()
    first = run_trial(config, digits(), store=Trained(), sensitivities=store)
    macs = [round.measurement.macs_physical for round in first.rounds]
    ((_, limit),) = config.prune.limits
    assert macs == sorted(macs, reverse=True)
    assert macs[0] > limit >= macs[-1]
    assert store.asked == 1
    store.answers = {q: read_sensitivity(answer.to_text()) for q, answer in store.answers.items()}
    again = run_trial(config, digits(), store=Trained(), sensitivities=store)
    alone = run_trial(config, digits(), store=Trained())
    for other in (again, alone):
        masks = other.last.state.masks
        assert all(torch.equal(mask, masks[name]) for name, mask in first.last.state.masks.items())


def test_a_limit_of_parameters_looks_at_parameters() -> None:
    # By count each channel is worth the same; by MACs those of the first layer are worth more.
    by = {
        name: run_trial(trial("channel", **({name: 0.6} if name else {})), digits(), store=Trained())
        for name in ("macs", "parameters", "")
    }
    assert by["parameters"].last.measurement.parameters_physical <= 0.6 * by[""].cost.parameters
    total = sum(
        int((~mask).sum()) for name, mask in by[""].last.state.masks.items() if name.endswith("norm.bias")
    )
    assert total == 8  # half of 6 + 10
