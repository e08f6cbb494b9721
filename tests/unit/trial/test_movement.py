"""Sums over the steps of a training, for criteria that prune by them while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_during_training import ADAM, CNN, MOMENTUM, context, cubic, dead_are_zero, run, walk
from torch import Tensor, nn

from orchestrator.config import Numerics, Prune, Train
from orchestrator.training import loop
from orchestrator.trial import during_training, stages
from orchestrator.trial.context import TrialContext
from pruning.mask_selection import target_count
from pruning.masking import Masks


def minus_w_g(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: -(p.detach().double() * p.grad.double())
        for name, p in net.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("micro_batch", [4096, 16])
@pytest.mark.parametrize("recipe", [ADAM, replace(MOMENTUM, clip_norm=0.5)], ids=["adam", "clipped momentum"])
def test_movement_prunes_by_what_all_steps_add_up_to(
    recipe: Train, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums by hand: over every batch's gradient, before it is clipped."""
    sums: dict[str, Tensor] = {}
    rounds = []
    step, choose = loop.TrainingLoop._step, stages.choose_masks

    def noted_step(self: loop.TrainingLoop, *args: Any, **options: Any) -> Any:
        for name, addend in minus_w_g(self.net).items():
            sums[name] = sums.get(name, torch.zeros_like(addend)) + addend
        return step(self, *args, **options)

    def noted_choice(
        on: TrialContext,
        net: nn.Module,
        masks: Masks,
        *,
        accumulated: Mapping[str, Tensor],
        **options: object,
    ) -> Masks:
        assert list(accumulated) == ["hidden.0.weight", "hidden.1.weight", "output.weight"]
        assert all(torch.equal(total, sums[name]) for name, total in accumulated.items())
        chosen = choose(on, net, masks, accumulated=accumulated, **options)  # type: ignore[arg-type]
        flat = [torch.cat([by[name].flatten() for name in sums_of]) for by in (masks, chosen, accumulated)]
        rounds.append(flat)
        return chosen

    sums_of = ["hidden.0.weight", "hidden.1.weight", "output.weight"]
    monkeypatch.setattr(loop.TrainingLoop, "_step", noted_step)
    monkeypatch.setattr(during_training, "choose_masks", noted_choice)
    on = context(recipe=recipe)
    on = replace(on, config=replace(on.config, numerics=Numerics(micro_batch=micro_batch)))
    state = run(on, Prune("movement", "weight", "global", "cubic(rounds=3)", 0.8))
    assert len(rounds) == 3
    for before, after, scores in rounds:
        assert float(scores[before & ~after].max()) <= float(scores[after].min())
    total = sum(mask.numel() for mask in state.masks.values())
    assert sum(int((~mask).sum()) for mask in state.masks.values()) == target_count(0.8, total)
    assert dead_are_zero(state)


def test_movement_does_not_train_otherwise_than_magnitude() -> None:
    """Up to the first round, after the second of eight epochs, both are one training."""
    on = context(recipe=Train(epochs=8))
    one, two = (
        run(on, replace(cubic("weight", scope="global"), criterion=name))
        for name in ("movement", "magnitude")
    )
    losses = [[record.train_loss for record in state.history] for state in (one, two)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2:] != losses[1][2:]
    assert any(not torch.equal(one.masks[name], two.masks[name]) for name in one.masks)


def test_movement_of_channels_and_of_a_protected_layer() -> None:
    measured = walk(context(CNN), replace(cubic("channel"), criterion="movement")).last
    assert dead_are_zero(measured.state)
    assert measured.cut
    state = run(context(), replace(cubic("weight"), criterion="movement", protect=("output",)))
    assert state.weights["output.weight"].all()
    assert "output.weight" not in state.masks


def test_what_remembers_and_cannot_be_saved_starts_anew() -> None:
    hooks = loop.TrainingHooks(after_backward=lambda: None)
    assert hooks.cannot_resume
    assert not loop.NO_HOOKS.cannot_resume
