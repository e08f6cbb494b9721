"""Recoveries: laws that all of them keep, lengths and rates, and where each of them starts from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.training.checkpoint_packing import snapshot
from orchestrator.training.evaluation import evaluate
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.lengths import epochs_of, position_of
from orchestrator.training.loop import EpochRecord, train
from orchestrator.training.lr_schedules import TrainingPhase, learning_rate
from orchestrator.trial import recovery, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context, seed_for
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import epochs_per_round, recoveries

RECIPE = Train(epochs=3, optimizer="sgd", lr=0.1, schedule="linear")
NUMERICS = Numerics(micro_batch=4096)
MLP, CNN = "mlp(widths=[32, 16])", "cnn(widths=[8, 16])"
CHANNELS = Prune("l2", "channel", "layer", "one_shot", 0.5)
WEIGHTS = Prune("magnitude", "weight", "layer", "one_shot", 0.7)
digits = cache(partial(loading.load_dataset, "digits"))


@cache
def context(model: str = MLP, recipe: Train = RECIPE, seed: int = 0) -> TrialContext:
    config = DenseConfig(model, "digits", 256, seed, recipe, NUMERICS)
    on = make_context(config, digits())
    return replace(on, dense_state=stages.dense(on))


@cache
def pruned(on: TrialContext, prune: Prune = WEIGHTS, round: int = 1) -> NetworkState:
    config = TrialConfig(on.config, prune, "none", "x")
    return stages.prune_round(replace(on, trial=config), on.trained_dense(), round=round)


def same(a: NetworkState, b: NetworkState) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(a.weights[n], b.weights[n]) for n in a.weights
    )


def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NetworkState, TrainingPhase]]:
    """What each training of a recovery starts from, in the order of the calls."""
    seen: list[tuple[NetworkState, TrainingPhase]] = []

    def noted(
        on: TrialContext, state: NetworkState, phase: TrainingPhase, *, stage: str, round: int, is_cut: bool
    ) -> NetworkState:
        seen.append((state, phase))
        return stages.train_more(on, state, phase, stage=stage, round=round, is_cut=is_cut)

    monkeypatch.setattr(recovery, "train_more", noted)
    return seen


# ---- what every recovery keeps


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("prune", [WEIGHTS, CHANNELS], ids=["weights", "channels"])
@pytest.mark.parametrize("name", list(recoveries))
def test_masks_stay_bits_repeat_and_the_cost_is_what_the_plan_says(
    name: str, prune: Prune, model: str
) -> None:
    on, regrows = context(model), recoveries.get(name).traits.get("regrows")
    if regrows and prune == CHANNELS:
        pytest.skip("it is for single weights")
    before = pruned(on, prune)
    copies = {name: tensor.clone() for name, tensor in before.weights.items()}
    after = recoveries.get(name)(on, before, round=1)

    assert before.masks.keys() == after.masks.keys()
    for key, mask in before.masks.items():
        assert int(after.masks[key].sum()) == int(mask.sum())
        assert regrows or torch.equal(after.masks[key], mask)
    assert any((~mask).any() for mask in after.masks.values())
    for key, mask in after.masks.items():
        assert not after.weights[key][~mask].any()
    assert all(torch.equal(before.weights[key], tensor) for key, tensor in copies.items())

    epochs = epochs_per_round(name, RECIPE)
    assert after.epochs == before.epochs + epochs
    # The dense network took three epochs, and they all cost the same.
    assert 3 * after.train_flops == before.train_flops * (3 + epochs)
    assert len(after.history) == epochs
    assert same(after, recoveries.get(name)(on, before, round=1))


@pytest.mark.parametrize("name", sorted(set(recoveries) - {"none", "refit"}))
def test_what_trains_is_seeded_by_its_round_and_the_seed(name: str) -> None:
    on, method = context(), recoveries.get(name)
    state = pruned(on)
    assert not same(method(on, state, round=1), method(on, state, round=2))
    other = replace(on, config=replace(on.config, seed=1))
    assert not same(method(on, state, round=1), method(other, state, round=1))


def test_none_is_the_state_itself() -> None:
    on = context()
    assert recoveries.get("none")(on, on.trained_dense(), round=1) is on.trained_dense()


# ---- lengths


@pytest.mark.parametrize(
    ("length", "epochs"),
    [
        (1, 1),
        (3, 3),
        (7, 7),
        (1.0, 1),
        (2.0, 2),
        ("10%", 2),
        ("100%", 20),
        ("1%", 1),
        ("12.5%", 2),
        ("50.0 %", 10),
    ],
)
def test_lengths(length: float | str, epochs: int) -> None:
    assert epochs_of(length, Train(epochs=20)) == epochs


@pytest.mark.parametrize(
    "length",
    [
        0,
        -1,
        True,
        0.0,
        -0.1,
        1.5,
        float("nan"),
        float("inf"),
        "0%",
        "101%",
        "-5%",
        "nan%",
        "5",
        "",
        "%",
        "x%",
        None,
    ],
)
def test_lengths_that_are_none(length: float | str) -> None:
    with pytest.raises(ValueError, match="whole epochs") as raised:
        epochs_of(length, Train())
    assert repr(length) in str(raised.value)
    for method in ("finetune", "lr_rewind"):
        with pytest.raises(ValueError, match="whole epochs"):
            recoveries.get({"method": method, "epochs": length})


@pytest.mark.parametrize(
    ("point", "epoch"), [(0, 0), (0.0, 0), (5, 5), (5.0, 5), (20, 19), ("10%", 2), ("1%", 0), ("100%", 19)]
)
def test_points_of_the_training(point: float | str, epoch: int) -> None:
    assert position_of(point, Train(epochs=20)) == epoch


def test_a_part_of_the_training_is_written_in_per_cent() -> None:
    advice = "0.5 is no length; write that part of the dense training as '50%'"
    for text in ("finetune(epochs=0.5)", "lr_rewind(epochs=0.5)", "rewind(to=0.5)"):
        with pytest.raises(ValueError, match=advice):
            recoveries.get(text)
    with pytest.raises(ValueError, match=f"'0.5'{advice[3:]}"):  # quoted
        recoveries.get("finetune(epochs='0.5')")
    with pytest.raises(ValueError, match=advice):
        preparations.get("group_lasso(epochs=0.5)")


def test_equal_lengths_have_equal_text() -> None:
    assert recoveries.get("finetune(epochs=1.0)").options["epochs"] == 1
    assert type(recoveries.get("finetune(epochs=1.0)").options["epochs"]) is int
    assert recoveries.get("lr_rewind(epochs='50.0%')").options["epochs"] == "50%"
    assert recoveries.get("rewind(to='0%')").options["to"] == 0


@pytest.mark.parametrize("point", [-1, True, False, 1.5, "101%", "x%", "3"])
def test_points_that_are_none(point: float | str) -> None:
    with pytest.raises(ValueError, match="whole epochs"):
        recoveries.get({"method": "rewind", "to": point})


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("none", 0),
        ("refit", 0),
        ("finetune", 2),
        ("finetune(epochs=3)", 3),
        ("rewind", 20),
        ("rewind(to=5)", 15),
        ("rewind(to='10%')", 18),
        ("lr_rewind", 20),
        ("lr_rewind(epochs=30)", 20),
        ("lr_rewind(epochs='25%')", 5),
        ("reinit", 20),
    ],
)
def test_epochs_a_round_by_hand(text: str, epochs: int) -> None:
    assert epochs_per_round(text, Train(epochs=20)) == epochs


def test_options_are_checked_where_they_are_read() -> None:
    with pytest.raises(ValueError, match="did you mean finetune"):
        recoveries.get("finetun")
    with pytest.raises(ValueError, match=r"must be in \(0, 1000\]"):
        recoveries.get("finetune(lr=0.0)")
    with pytest.raises(ValueError, match="did you mean epochs"):
        recoveries.get("finetune(epoch=2)")
    with pytest.raises(ValueError, match=r"must be in \[1, 1e\+06\]"):
        recoveries.get("refit(images=0)")


def test_a_percentage_is_of_the_training() -> None:
    on = context(recipe=replace(RECIPE, epochs=1))
    assert recoveries.get("finetune(epochs='50%')")(on, on.trained_dense(), round=1).epochs == 2


# ---- fine-tuning and learning rates


def test_finetuning_holds_the_last_rate() -> None:
    on = context(recipe=replace(RECIPE, epochs=4))
    before = pruned(on)
    after = recoveries.get("finetune(epochs=3, lr=2.0)")(on, before, round=1)
    # Linear from 0.1 at epoch 0 to 0 at epoch 4: 0.025 where the last epoch starts.
    assert [record.lr for record in after.history] == pytest.approx([0.05] * 3)
    assert not any(torch.equal(after.weights[name], before.weights[name]) for name in before.masks)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_rewinding_the_rate_starts_it_where_so_many_epochs_are_left(
    schedule: str, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, schedule=schedule)
    on = context(recipe=recipe)
    state = pruned(on)
    seen = starts(monkeypatch)
    after = recoveries.get(f"lr_rewind(epochs={epochs})")(on, state, round=1)
    ((start, phase),) = seen
    assert start is state
    assert (phase.start, phase.epochs, phase.constant_lr, phase.lr_factor) == (3 - epochs, epochs, False, 1.0)
    # Five batches of 256 an epoch: the last one starts at four fifths of it.
    assert after.history[0].lr == learning_rate(recipe, 3 - epochs + 0.8)
    assert after.history[-1].lr == on.trained_dense().history[-1].lr


# ---- rewinding


def survivors_equal(state: NetworkState, weights: dict[str, torch.Tensor]) -> bool:
    """Weights, biases and norms, with the dead ones at zero."""
    return all(
        torch.equal(
            state.weights[name], torch.where(state.masks[name], value, 0.0) if name in state.masks else value
        )
        for name, value in weights.items()
    )


@pytest.mark.parametrize("model", [MLP, CNN])
def test_rewinding_to_0_starts_from_the_initial_weights(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = context(model)
    state = pruned(on, CHANNELS)
    seen = starts(monkeypatch)
    recoveries.get("rewind")(on, state, round=1)
    ((start, phase),) = seen
    assert survivors_equal(start, on.build().state_dict())
    assert (phase.start, phase.epochs) == (0, 3)


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("to", [1, 2])
def test_rewinding_to_an_epoch_starts_from_the_dense_trainings_own_weights(
    model: str, to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = context(model)
    # The whole training by hand; on its way the weights after `to` epochs are noted.
    net, way = on.build(), dict[int, dict[str, torch.Tensor]]()

    def note(epoch: int) -> None:
        way[epoch] = snapshot(net)

    train(
        net,
        on.data.train,
        on.data.validation,
        recipe=RECIPE,
        phase=TrainingPhase(3),
        batch_size=256,
        numerics=NUMERICS,
        generator=torch.Generator().manual_seed(seed_for(0, "dense", 0)),
        hooks=TrainingHooks(after_epoch=note),
    )
    assert all(torch.equal(way[3][name], value) for name, value in on.trained_dense().weights.items())
    state = pruned(on, CHANNELS)
    seen = starts(monkeypatch)
    after = recoveries.get(f"rewind(to={to})")(on, state, round=1)
    ((start, phase),) = seen
    assert survivors_equal(start, way[to])
    assert not survivors_equal(start, way[to - 1] if to > 1 else on.build().state_dict())
    assert (phase.start, phase.epochs) == (to, 3 - to)
    assert after.history[-1].lr == on.trained_dense().history[-1].lr


def test_training_so_far_again_is_quiet_and_not_charged() -> None:
    heard: list[str] = []

    def report(stage: str, epoch: int, record: EpochRecord) -> None:
        heard.append(stage)

    on = replace(context(), on_epoch=report)
    after = recoveries.get("rewind(to=2)")(on, pruned(on), round=1)
    assert heard == ["rewind"]
    assert after.epochs == 3 + 1


def test_another_draw_is_another_network_for_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    on = context()
    state = pruned(on)
    seen = starts(monkeypatch)
    for round in (1, 1, 2):
        recoveries.get("reinit")(on, state, round=round)
    first, again, second = (start for start, _ in seen)
    assert same(first, again)
    name = "hidden.0.weight"
    living = state.masks[name]
    for one, other in ((first.weights, second.weights), (first.weights, on.build().state_dict())):
        assert not (one[name] == other[name])[living].any()
    # From the same distribution: uniform within 1 / sqrt(64), as torch draws for a layer of 64 inputs.
    assert 0.115 < float(first.weights[name].abs().max()) <= 0.125


# ---- least squares


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_refit_is_better_than_nothing(model: str, granularity: str) -> None:
    on = context(model, Train(epochs=12, lr=3e-2))
    state = pruned(on, Prune("l2", granularity, "layer", "one_shot", 0.7))
    after = recoveries.get("refit")(on, state, round=1)
    cut, refitted = (
        evaluate(on.build_module(s), on.data.validation, numerics=NUMERICS).loss for s in (state, after)
    )
    assert refitted < 0.8 * cut


def test_refit_looks_at_no_label() -> None:
    on = context(CNN)
    state = pruned(on, CHANNELS)
    blind = replace(on.data, train=replace(on.data.train, labels=torch.zeros_like(on.data.train.labels)))
    method = recoveries.get("refit(images=100)")
    assert same(method(on, state, round=1), method(replace(on, data=blind), state, round=1))
