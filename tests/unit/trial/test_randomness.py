"""What draws from torch's global generators: the same bits whatever was drawn before, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_checkpoint import Killed, MemoryStore, Process, assert_same, digits, tensors_equal
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.system.determinism import global_states, seeded
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial import context, run, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context, seed_for
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.run import TrialResult
from orchestrator.trial.structure import flow_of
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Scores

RECIPE = Train(epochs=2, lr=3e-3, augment="crop_flip")
DENSE = DenseConfig("dropping", "digits", 50, 0, RECIPE, Numerics(micro_batch=4096))
UNITS = Prune("l2", "unit", "layer", "iterative(rounds=2)", 0.5)
WEIGHTS = replace(UNITS, criterion="magnitude", granularity="weight", scope="global")
CHANNELS = replace(UNITS, granularity="channel", schedule="one_shot")
LASSO = "group_lasso(strength=0.05, epochs=2)"
WALKS: dict[str, DenseConfig | TrialConfig] = {
    "dense": DENSE,
    "dropout in eval mode, too": replace(DENSE, model="guessing"),
    "finetune": TrialConfig(DENSE, UNITS, "finetune(epochs=2)", "x"),
    "rewind": TrialConfig(DENSE, WEIGHTS, "rewind(to=1)", "x"),
    "reinit": TrialConfig(DENSE, WEIGHTS, "reinit", "x"),
    "refit": TrialConfig(DENSE, UNITS, "refit(images=50)", "x"),
    "group lasso, taught": TrialConfig(
        DENSE, CHANNELS, "finetune(epochs=1)", "x", prepare=LASSO, distill="soft_labels"
    ),
    "during": TrialConfig(DENSE, UNITS, "finetune(epochs=1)", "x", when="during"),
    "snip at init": TrialConfig(DENSE, replace(WEIGHTS, criterion="snip"), "rewind", "x", when="init"),
    "pivoted_qr": TrialConfig(
        DENSE, replace(UNITS, criterion="pivoted_qr", schedule="one_shot"), "finetune(epochs=1)", "x"
    ),
}
HEARD: list[Tensor] = []  # what `telling` drew in training mode, forward pass by forward pass


class Always(nn.Module):
    """Dropout that is not off in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images, 0.5, training=True)


class Telling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if self.training and images.device.type == "cpu":
            HEARD.append(torch.rand(3))
        return images


def dropping(input_shape: tuple[int, int, int], num_classes: int, *, width: int = 16) -> nn.Module:
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Dropout(0.5), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, num_classes))


def guessing(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(Always(), *dropping(input_shape, num_classes))


def telling(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(Telling(), *dropping(input_shape, num_classes))


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for builder in (dropping, guessing, telling):
        monkeypatch.setitem(models.BUILDERS, builder.__name__, builder)
    HEARD.clear()
    yield
    HEARD.clear()


def run_after(seed: int, config: DenseConfig | TrialConfig, kept: MemoryStore | None = None) -> TrialResult:
    """A walk in a process that has drawn before; the global generator is afterwards as it was."""
    for cached in (stages._weights_at, run._assess_dense, context._cost):
        cached.cache_clear()
    torch.manual_seed(seed)
    torch.rand(seed)
    before = torch.get_rng_state()
    result = Process().run(config, kept, held=False)
    assert torch.equal(torch.get_rng_state(), before)
    return result


@pytest.mark.parametrize("name", WALKS)
def test_it_has_the_same_bits_whatever_was_drawn_before(name: str) -> None:
    assert_same(run_after(2, WALKS[name]), run_after(1, WALKS[name]))


@pytest.mark.parametrize("name", WALKS)
def test_killed_at_any_event_it_ends_with_the_same_bits(name: str) -> None:
    reference = run_after(1, WALKS[name])
    events = Process()
    events.run(WALKS[name], held=False)
    for at in range(len(events.heard)):
        kept = MemoryStore()
        before = torch.get_rng_state()
        with pytest.raises(Killed):
            Process(kill_at=at).run(WALKS[name], kept, held=False)
        assert torch.equal(torch.get_rng_state(), before)  # after an error, too
        assert_same(run_after(3 + at, WALKS[name], kept), reference)


def test_every_training_draws_from_a_seed_of_its_stage_and_round() -> None:
    """The first numbers of each are those of a generator of one's own under that seed."""
    stage_context = make_context(replace(DENSE, model="telling"), digits())
    state = stages.dense(stage_context)
    first = [HEARD[0]]
    for round in (1, 2):
        HEARD.clear()
        stages.train_more(stage_context, state, TrainingPhase(1), stage="finetune", round=round)
        first.append(HEARD[0])
    trainings = (("dense", 0), ("finetune", 1), ("finetune", 2))
    expected = [
        torch.rand(3, generator=torch.Generator().manual_seed(seed_for(0, f"{stage}/global", round)))
        for stage, round in trainings
    ]
    assert all(torch.equal(one, other) for one, other in zip(first, expected, strict=True))
    assert len({tuple(one.tolist()) for one in first}) == 3


def test_dropout_is_another_in_every_epoch_and_for_every_seed() -> None:
    stages.dense(make_context(replace(DENSE, model="telling"), digits()))
    draws = [tuple(one.tolist()) for one in HEARD]
    assert len(set(draws)) == len(draws) == 2 * 4  # epochs of 200 images in batches of 50
    HEARD.clear()
    stages.dense(make_context(replace(DENSE, model="telling", seed=1), digits()))
    assert not {tuple(one.tolist()) for one in HEARD} & set(draws)


def test_criteria_and_recoveries_of_ones_own_may_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def guess(scene: ScoringContext) -> Scores:
        return {name: torch.rand(weight.shape) for name, weight in scene.weights.items()}

    def shake(trial_context: TrialContext, state: NetworkState, *, round: int) -> NetworkState:
        weights = {
            name: tensor + 0.01 * torch.randn(tensor.shape) * state.masks.get(name, torch.tensor(True))
            for name, tensor in state.weights.items()
        }
        return replace(state, weights=weights, history=())

    monkeypatch.setitem(criteria._functions, "guess", (guess, {}))
    monkeypatch.setitem(recoveries._functions, "shake", (shake, {}))
    config = TrialConfig(DENSE, replace(WEIGHTS, criterion="guess"), "shake", "x")
    one, other = run_after(1, config), run_after(2, config)
    assert_same(one, other)
    untouched = replace(config, recover="none")
    assert not tensors_equal(run_after(1, untouched).last.state.weights, one.last.state.weights)


def test_looking_at_a_network_that_draws_in_eval_mode_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    assert flow_of(("guessing", (1, 8, 8), 10)).outputs
    assert torch.equal(torch.get_rng_state(), before)


# ---- the generators themselves


def test_the_seeded_draws_are_those_of_manual_seed_and_end_with_the_block() -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(1)
    first, before = torch.rand(1), torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.rand(4), expected)
        with seeded(8):
            torch.rand(5)
        torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded(7):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), first)


def test_states_of_the_cpu_are_of_the_cpu_alone() -> None:
    assert list(global_states(torch.device("cpu"))) == ["cpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dense", "finetune", "group lasso, taught", "during"])
def test_on_a_gpu_its_generator_is_seeded_kept_and_given_back(name: str) -> None:
    walk = WALKS[name]
    numerics = Numerics(device="cuda", micro_batch=4096)
    if isinstance(walk, DenseConfig):
        config: DenseConfig | TrialConfig = replace(walk, numerics=numerics)
    else:
        config = replace(walk, dense=replace(walk.dense, numerics=numerics))
    images = loading.load_dataset("digits", samples_per_class=20, device="cuda")
    results = []
    for seed, kill_at in ((1, None), (2, None), (3, 1)):
        torch.manual_seed(seed)
        torch.rand(seed, device="cuda")
        before, kept = (torch.get_rng_state(), torch.cuda.get_rng_state()), MemoryStore()
        for at in [kill_at, None] if kill_at is not None else [None]:
            process = Process(kill_at=at)
            try:
                results.append(run_on(config, images, process, kept))
            except Killed:
                continue
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(torch.cuda.get_rng_state(), before[1])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def run_on(
    config: DenseConfig | TrialConfig, images: loading.Dataset, process: Process, kept: MemoryStore
) -> TrialResult:
    if isinstance(config, DenseConfig):
        return run.run_dense(config, images, on_epoch=process.epoch, checkpoints=kept, every_seconds=0.0)

    class Empty:
        def dense(self, config: DenseConfig) -> NetworkState | None:
            return None

    hears = {"report": process.epoch, "report_round": process.round}
    return run.run_trial(config, images, store=Empty(), checkpoints=kept, every_seconds=0.0, **hears)
