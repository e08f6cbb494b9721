"""The baseline of `benchmarks.sweeps`: a good script with Ray Tune, MLflow and torch's own pruning.

    python benchmarks/baseline.py FOLDER

It trains a 64-256-256-10 network on digits: two methods by 13 amounts, 10 epochs dense and 3 after pruning.
It reuses actors, passes the requirements, uses one thread a trial, and logs a loadable model for every
trial. The store is FOLDER/mlflow.db. The last line on stdout is JSON: the number of models, and accuracies
by amount.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import ray
import torch
from mlflow.tracking import MlflowClient
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

AMOUNTS = (0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)
METHODS = ("weight", "neuron")
EPOCHS, FINETUNE, BATCH, LR = 10, 3, 64, 1e-3
Split = tuple[torch.Tensor, torch.Tensor]


def load_data() -> tuple[Split, Split]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.astype("float32") / 16, labels, test_size=0.2, stratify=labels, random_state=0
    )
    x_train, x_test, y_train, y_test = map(torch.as_tensor, parts)
    return (x_train[180:], y_train[180:]), (x_test, y_test)


def train(net: nn.Module, split: Split, *, epochs: int) -> None:
    images, labels = split
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for _ in range(epochs):
        net.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.inference_mode()
def accuracy(net: nn.Module, split: Split) -> float:
    net.eval()
    images, labels = split
    return float((net(images).argmax(1) == labels).float().mean())


def prune_layers(net: nn.Module, method: str, amount: float) -> None:
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if method == "weight":
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount)
    else:
        for layer in layers[:-1]:
            prune.ln_structured(layer, "weight", amount, n=2, dim=0)


def run_trial(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_split, test_split = load_data()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    train(net, train_split, epochs=EPOCHS)
    dense = accuracy(net, test_split)
    if config["amount"]:
        prune_layers(net, config["method"], config["amount"])
    train(net, train_split, epochs=FINETUNE)
    for layer in net.modules():
        if isinstance(layer, nn.Linear) and prune.is_pruned(layer):
            prune.remove(layer, "weight")
    mlflow.set_tracking_uri(config["uri"])
    mlflow.set_experiment("models")
    with mlflow.start_run(run_name=f"{config['method']} {config['amount']}"):
        mlflow.pytorch.log_model(net, name="model", pip_requirements=["torch"], serialization_format="pickle")
    tune.report({"accuracy": accuracy(net, test_split), "dense_accuracy": dense})


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    client.create_experiment("models", artifact_location=(folder / "artifacts").as_uri())
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    results = tune.Tuner(
        run_trial,
        param_space={
            "method": tune.grid_search(list(METHODS)),
            "amount": tune.grid_search(list(AMOUNTS)),
            "uri": uri,
        },
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"),
            verbose=0,
            callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name="trials")],
        ),
    ).fit()
    ray.shutdown()
    by_amount = {amount: [] for amount in AMOUNTS}
    for result in results:
        by_amount[result.config["amount"]].append(result.metrics["accuracy"])
    experiment = client.get_experiment_by_name("models").experiment_id
    models = len(client.search_logged_models([experiment]))
    print(json.dumps({"models": models, "accuracies": list(by_amount.values())}))


if __name__ == "__main__":
    main()
