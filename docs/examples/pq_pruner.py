"""PQIndexPruner in plain Optuna: search for the fraction to prune per round, without Ray or MLflow.

python docs/examples/pq_pruner.py
"""

from __future__ import annotations

import optuna
import torch
from torch import nn

import models
import pruning
from orchestrator.data import loading
from orchestrator.execution.early_stopping import PQIndexPruner, record_round
from pruning.masking import Masks

ROUNDS, STEPS = 8, 40


def train(net: nn.Module, images: loading.Split, masks: Masks) -> None:
    """Train for a few steps of Adam on all images; pruned weights stay zero."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images.images), images.labels).backward()
        optimizer.step()
        pruning.apply_masks(net, masks)


def accuracy(net: nn.Module, images: loading.Split) -> float:
    with torch.no_grad():
        return float((net(images.images).argmax(1) == images.labels).double().mean())


def index(net: nn.Module, masks: Masks) -> float:
    """Return the PQ index of the remaining weights."""
    weights = dict(net.named_parameters())
    remaining = [weights[name][masks[name]] if name in masks else w.flatten() for name, w in weights.items()]
    return pruning.pq_index(torch.cat(remaining))


def objective(trial: optuna.Trial) -> float:
    digits = loading.load_dataset("digits")
    share = trial.suggest_float("share", 0.2, 0.8)  # of the remaining weights, each round
    torch.manual_seed(trial.number)
    net = models.build("mlp(widths=[32])", input_shape=digits.input_shape, num_classes=digits.num_classes)
    train(net, digits.train, {})
    dense = accuracy(net, digits.validation)
    trial.set_user_attr("pq_index:0", index(net, {}))
    for round in range(1, ROUNDS + 1):
        masks = pruning.prune(
            net, amount=1 - (1 - share) ** round, criterion="magnitude", granularity="weight", scope="global"
        )
        pruning.apply_masks(net, masks)
        train(net, digits.train, masks)
        measured = accuracy(net, digits.validation)
        record_round(
            trial, round, val_accuracy=measured, pq_index=index(net, masks), dense_val_accuracy=dense
        )
        if round < ROUNDS and trial.should_prune():
            raise optuna.TrialPruned
    return measured


def search(trials: int = 6) -> optuna.Study:
    """Run a study; its trials are stopped or complete, and have phases."""
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PQIndexPruner(delta=0.005, patience=1, tolerance=0.02),
    )
    study.optimize(objective, n_trials=trials)
    return study


if __name__ == "__main__":
    study = search()
    for trial in study.trials:
        phase = study.pruner.phase(trial)
        steps, share = len(trial.intermediate_values), trial.params["share"]
        print(f"share {share:.2f}: {steps} rounds, {trial.state.name}, {phase}, {trial.value:.3f}")
