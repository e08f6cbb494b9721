"""Group lasso before pruning: exact zeros, and a network that is cut along them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.training.evaluation import evaluate
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial import preparation, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.preparation import preparations
from orchestrator.trial.run import TrialResult, run_trial
from orchestrator.trial.structure import channels_of
from pruning.masking import sum_by_unit

RECIPE = Train(epochs=4, optimizer="sgd", lr=0.05, momentum=0.9, schedule="linear")
NUMERICS = Numerics(micro_batch=4096)
MLP, CNN = "mlp(widths=[32, 16])", "cnn(widths=[8, 16])"
CUT_EMPTY = Prune("l2", "channel", "layer", "threshold(value=1e-9, unit='absolute')", 1.0)
STRONG = {MLP: "group_lasso(strength=0.05, epochs=4)", CNN: "group_lasso(strength=0.2, epochs=4)"}
digits = cache(partial(loading.load_dataset, "digits"))


@cache
def context(model: str) -> TrialContext:
    config = DenseConfig(model, "digits", 64, 0, RECIPE, NUMERICS)
    on = make_context(config, digits())
    return replace(on, dense_state=stages.dense(on))


@cache
def prepared(model: str, text: str) -> NetworkState:
    return preparations.get(text)(context(model), context(model).trained_dense())


class Shelf:
    def __init__(self, on: TrialContext) -> None:
        self.on = on

    def dense(self, config: DenseConfig) -> NetworkState | None:
        return self.on.trained_dense()


def walk(model: str, prepare: str, prune: Prune = CUT_EMPTY, recover: str = "none") -> TrialResult:
    on = context(model)
    config = TrialConfig(on.config, prune, recover, "x", prepare=prepare)
    return run_trial(config, digits(), store=Shelf(on))


def norms(on: TrialContext, state: NetworkState) -> dict[str, torch.Tensor]:
    squares = {name: weight.double().square() for name, weight in state.weights.items() if weight.dim() > 1}
    return {group.name: sum_by_unit(group, squares).sqrt() for group in channels_of(on.architecture, ())}


def test_none_is_the_state_itself() -> None:
    on = context(MLP)
    assert preparations.get("none")(on, on.trained_dense()) is on.trained_dense()


@pytest.mark.parametrize("model", [MLP, CNN])
def test_the_proximal_mode_leaves_exact_zeros(model: str) -> None:
    on = context(model)
    after = norms(on, prepared(model, STRONG[model]))
    empty = {name: int((norm == 0).sum()) for name, norm in after.items()}
    assert sum(empty.values()) > 0
    assert all(count < len(after[name]) for name, count in empty.items())  # a network is left
    # Nothing hides between zero and the threshold, and a subgradient empties nothing.
    assert not any(((norm > 0) & (norm < 1e-9)).any() for norm in after.values())
    soft = norms(on, prepared(model, STRONG[model].replace(")", ", mode='subgradient')")))
    assert all((norm > 0).all() for norm in soft.values())


@pytest.mark.parametrize("model", [MLP, CNN])
def test_a_threshold_cuts_out_what_is_empty_and_nothing_else(model: str) -> None:
    measured = walk(model, STRONG[model]).last
    found, state = measured.measurement, prepared(model, STRONG[model])
    empty = {name: norm == 0 for name, norm in norms(context(model), state).items()}
    gone, total = (
        sum(int(count) for count in counts)
        for counts in zip(*((norm.sum(), norm.numel()) for norm in empty.values()), strict=True)
    )
    assert measured.cut
    assert found.amount == pytest.approx(gone / total)
    assert found.macs_physical < found.macs_dense
    assert found.parameters_physical < found.parameters_dense
    assert measured.notes == ()


@pytest.mark.parametrize("model", [MLP, CNN])
def test_the_cut_network_gives_what_the_masked_one_gives(model: str) -> None:
    measured, on = walk(model, STRONG[model]).last, context(model)
    images = digits().test.images
    masked = on.build_module(measured.state).eval()
    with torch.inference_mode():
        torch.testing.assert_close(measured.net.eval()(images), masked(images), rtol=0, atol=1e-5)
    assert measured.measurement.macs_physical == measured.measurement.macs_effective


def test_an_mlp_without_biases_loses_nothing_with_its_empty_channels() -> None:
    # An empty group reads and writes nothing; in a CNN its norm may still shift.
    state, measured = prepared(MLP, STRONG[MLP]), walk(MLP, STRONG[MLP]).last
    before = evaluate(context(MLP).build_module(state), digits().test, numerics=NUMERICS)
    assert (before.accuracy, before.loss) == (measured.measurement.accuracy, measured.measurement.loss)


def test_the_amount_is_a_ceiling() -> None:
    result = walk(MLP, STRONG[MLP], replace(CUT_EMPTY, amount=0.25))
    # 32 and 16 channels: at most 8 and 4.
    assert 0 < result.last.measurement.amount <= 0.25


def test_strength_0_is_the_same_training_without_a_penalty() -> None:
    on = context(MLP)
    plain = stages.train_more(on, on.trained_dense(), TrainingPhase(2, start=2), stage="group_lasso", round=0)
    lasso = prepared(MLP, "group_lasso(strength=0.0, epochs=2)")
    assert all(torch.equal(plain.weights[name], weight) for name, weight in lasso.weights.items())


@pytest.mark.parametrize(("epochs", "start"), [("4", 0), ("1", 3), ("'50%'", 2), ("'100%'", 0), ("6", 0)])
def test_it_is_the_end_of_the_recipe_once_more_and_charged(
    epochs: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[TrainingPhase] = []

    def noted(on: TrialContext, state: NetworkState, phase: TrainingPhase, **others: object) -> NetworkState:
        phases.append(phase)
        return stages.train_more(on, state, phase, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "train_more", noted)
    on = context(MLP)
    state = preparations.get(f"group_lasso(epochs={epochs})")(on, on.trained_dense())
    length = {"4": 4, "1": 1, "'50%'": 2, "'100%'": 4, "6": 6}[epochs]
    assert phases == [TrainingPhase(length, start=start)]
    assert state.epochs == 4 + length
    assert 4 * state.train_flops == on.trained_dense().train_flops * state.epochs
    assert state.masks == {}


def test_preparing_is_the_same_again_and_differs_by_seed() -> None:
    on, text = context(MLP), "group_lasso(epochs=1)"
    first, again = (preparations.get(text)(on, on.trained_dense()) for _ in range(2))
    assert all(torch.equal(first.weights[name], weight) for name, weight in again.weights.items())
    other = replace(on, config=replace(on.config, seed=1))
    weights = preparations.get(text)(other, on.trained_dense()).weights
    assert not torch.equal(first.weights["output.weight"], weights["output.weight"])


@pytest.mark.parametrize("kind", ["filter", "channel", "group"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_every_kind_shrinks_every_model(kind: str, model: str) -> None:
    on = context(model)
    free, held = (
        prepared(model, f"group_lasso(kind='{kind}', strength={strength}, epochs=1)")
        for strength in (0.0, 0.01)
    )
    for name, norm in norms(on, held).items():
        assert norm.sum() < norms(on, free)[name].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("kind='filters'", r"group_lasso\(kind\) is 'filters'; it must be filter"),
        ("mode='prox'", r"group_lasso\(mode\) is 'prox'; it must be proximal"),
        ("group_scale='root'", r"group_lasso\(group_scale\) is 'root'"),
        ("strength=-1.0", r"group_lasso\(strength\) is -1.0"),
        ("warmup=1.5", r"group_lasso\(warmup\) is 1.5"),
        ("epochs=0", "0 is no length; give whole epochs"),
        ("epochs='0%'", "'0%' is no length; give whole epochs"),
        ("strenght=1.0", "did you mean strength"),
    ],
)
def test_bad_options_are_named(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preparations.get(f"group_lasso({options})")
