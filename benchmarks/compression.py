"""`orchestrate compress` against what people do: equal budgets of MACs, from the same dense networks.

    python benchmarks/compression.py [--trials 8] [--epochs 3] [--folder DIR] [NETWORK ...]

On mnist-5k, at 50%, 25% and 10% of the dense network's MACs, five seeds:

- uniform: the same share of every group of channels by their L2 norms, in one shot, then fine-tuning;
- torch-pruning: its global magnitude pruner (GroupMagnitudeImportance), an epoch of fine-tuning after each of
  its rounds, as many epochs in all and the same recipe, data order and rate;
- compress: the search chooses on validation images of the first seed, and what it chose is run at all seeds.

Test accuracy decides nothing. Latency is of the exported file: one image, one thread, ONNX Runtime. Results
go to results/compression.json, a network at a time; sweeps resume in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

import pandas as pd
import torch
import torch_pruning
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import orchestrator
from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.config import DenseConfig, Numerics, dense_from_json
from orchestrator.data.loading import Dataset, load_data
from orchestrator.latency.exported_files import bench
from orchestrator.model_io.formats import FORMATS
from orchestrator.planning.allocation_scopes import ALLOCATED
from orchestrator.shipping.budgets import choose, parse_budgets
from orchestrator.storage.model_files import ModelSpec
from orchestrator.tracking import Tracker
from orchestrator.training.evaluation import evaluate
from orchestrator.training.loop import train
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.macs import profile

NETWORKS = {"cnn": "cnn", "resnet20": "resnet(depth=20)", "mobilenet_v2": "mobilenet_v2(width=0.25)"}
BUDGETS = ("50%", "25%", "10%")
SEARCHED = ("criterion", "scope", "schedule", "recover")  # columns of results, and axes
SEEDS = range(5)
# What the search may choose from is kept short for two cores: one or two epochs a round.
RECOVERIES = [f"finetune(epochs={count}, lr={rate}, on=cut)" for count in (1, 2) for rate in (1.0, 0.1)]
STEPS = 100  # by which its pruner approaches a budget: each removes as little as it can
DATA = "mnist-5k"
SPENT, DENSE_SPENT = "final/train_seconds", "ipa/train_seconds"
ORCHESTRATE = Path(sys.executable).with_name("orchestrate")
RESULTS = Path(__file__).parent / "results" / "compression.json"


@dataclass(frozen=True)
class Bench:
    """A network, and the folder in which its sweeps are."""

    label: str
    model: str
    folder: Path
    epochs: int  # of the dense training, of fine-tuning after one shot, and rounds of Torch-Pruning

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlruns/mlflow.db"

    def run(self, *words: str) -> None:
        env = {**os.environ, "MLFLOW_TRACKING_URI": self.uri}
        subprocess.run([ORCHESTRATE, *words], cwd=self.folder, env=env, check=True)

    def sweep(self, name: str, **axes: list[Any]) -> pd.DataFrame:
        """Return the results of a sweep over these axes and all seeds."""
        fixed = {"model": [self.model], "dataset": [DATA], "granularity": ["channel"]}
        space = {
            "version": 1,
            "about": f"{self.label} on {DATA}: {name}.",
            "axes": {**fixed, **axes, "seed": list(SEEDS)},
            "train": {"epochs": self.epochs},
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        self.run("sweep", "--space", f"{name}.yaml")
        return orchestrator.results(name, uri=self.uri)

    def dense_runs(self) -> dict[int, DenseRun]:
        """Return the dense network of each seed, from the sweep `uniform`."""
        tracker = Tracker(self.uri, "uniform")
        loaded = load_results(tracker, find_sweep(tracker, "uniform"))
        runs = {}
        for row in loaded.results.drop_duplicates("dense_key").to_dict("records"):
            run = loaded.runs[row["dense_key"]]
            config = dense_from_json(json.loads(tracker.read_text(run, "config.json")))
            net, record = orchestrator.load(run.run_id, uri=self.uri)
            runs[int(row["seed"])] = DenseRun(net, config, record.blueprint)
        return runs


@dataclass(frozen=True, eq=False)
class DenseRun:
    """A trained dense network, and how it was trained."""

    net: nn.Module
    config: DenseConfig
    spec: ModelSpec


@dataclass(frozen=True)
class Row:
    """One network at one budget and seed: accuracy in [0, 1], MACs of one image, and what it took.

    `seconds` are those of training after the dense network. Those of a search are in `search_seconds`.
    """

    contender: str
    budget: str
    seed: int
    accuracy: float
    macs: int
    macs_dense: int
    milliseconds: float
    seconds: float
    setting: str = ""
    search_seconds: float = 0.0


def uniform(bench_: Bench) -> Iterator[Row]:
    """One-shot L2, the same share of every group: fine-tuned on the cut network."""
    frame = bench_.sweep(
        "uniform",
        criterion=["l2"],
        scope=["layer"],
        amount=[{"macs": budget} for budget in BUDGETS],
        recover=[f"finetune(epochs={bench_.epochs}, on=cut)"],
    )
    yield from rows_of(bench_, frame, "uniform")


def rows_of(bench_: Bench, frame: pd.DataFrame, contender: str, **extra: Any) -> Iterator[Row]:
    for row in frame.to_dict("records"):
        budget = next(budget for budget in BUDGETS if budget in row["amount_text"])
        seed = int(row["seed"])
        yield Row(
            contender,
            budget,
            seed,
            row["final/accuracy"],
            int(row["final/macs_physical"]),
            int(row["final/macs_dense"]),
            bench(row["run_id"], threads=1, batches=(1,), seconds=1.0, uri=bench_.uri).timings[0].p50_ms,
            row[SPENT] - row[DENSE_SPENT],
            **extra,
        )


def compressed(bench_: Bench, trials: int) -> Iterator[Row]:
    """What `orchestrate compress` chooses on the first seed, run at all seeds."""
    for budget in BUDGETS:
        name = f"compress-{budget[:-1]}"
        if not (bench_.folder / name).exists():
            words = ["--model", bench_.model, "--data", DATA, "--budget", f"macs<={budget}", "--out", name]
            recoveries = f"recover={','.join(RECOVERIES)}"
            bench_.run(
                "compress",
                *words,
                "--trials",
                str(trials),
                "--epochs",
                str(bench_.epochs),
                "--set",
                recoveries,
            )
        frame = orchestrator.results(name, uri=bench_.uri)
        answer = choose(frame, parse_budgets([f"macs<={budget}"]), within=None, measure=lambda _: 0.0)
        assert answer is not None
        axes = {name: answer.row[name] for name in SEARCHED}
        if axes["scope"] in ALLOCATED:  # a space has it under another name
            axes["allocate"] = axes.pop("scope")
        amount = [{"macs": budget}]
        results = bench_.sweep(f"chosen-{budget[:-1]}", amount=amount, **{n: [v] for n, v in axes.items()})
        yield from rows_of(
            bench_,
            results,
            "compress",
            setting=", ".join(map(str, axes.values())),
            search_seconds=float((frame[SPENT] - frame[DENSE_SPENT]).sum()),
        )


def torch_pruned(bench_: Bench) -> Iterator[Row]:
    """Torch-Pruning's global magnitude pruner, an epoch of fine-tuning after each of its rounds."""
    data = load_data(DATA, None, "cpu")
    for (seed, dense), budget in product(bench_.dense_runs().items(), BUDGETS):
        net = deepcopy(dense.net)
        macs_dense = macs_of(net, dense)
        limit = macs_dense * float(budget[:-1]) / 100
        started = perf_counter()
        generator = torch.Generator().manual_seed(seed)
        prune = make_pruner(net, dense)
        for number in range(1, bench_.epochs + 1):
            # The same factor in each round, as in its examples of iterative pruning.
            prune(macs_dense * (limit / macs_dense) ** (number / bench_.epochs))
            finetune(net, dense, data, generator, epochs=1)
        seconds = perf_counter() - started
        accuracy = evaluate(net, data.test, numerics=Numerics()).accuracy
        file = bench_.folder / "peer.onnx"
        FORMATS["onnx"].write(net, dense.spec, file)
        timing = bench(str(file), threads=1, batches=(1,), seconds=1.0, uri=bench_.uri).timings[0]
        yield Row(
            "torch-pruning", budget, seed, accuracy, macs_of(net, dense), macs_dense, timing.p50_ms, seconds
        )


def macs_of(net: nn.Module, dense: DenseRun) -> int:
    return profile(net, dense.spec.input_shape).total_macs


def make_pruner(net: nn.Module, dense: DenseRun) -> Callable[[float], None]:
    """Return a function that prunes `net` in place until it has at most so many MACs."""
    images = torch.zeros(1, *dense.spec.input_shape)
    classes = dense.spec.num_classes
    last = [layer for layer in net.modules() if vars(layer).get("out_features") == classes]
    pruner = torch_pruning.pruner.MagnitudePruner(
        net,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=last,
    )

    def prune(limit: float) -> None:
        for _ in range(STEPS):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                net.eval()(images)
            if counter.get_total_flops() / 2 <= limit:
                return
            pruner.step()

    return prune


def finetune(
    net: nn.Module, dense: DenseRun, data: Dataset, generator: torch.Generator, *, epochs: int
) -> None:
    """As recover=finetune does: on at the last learning rate."""
    recipe = dense.config.train
    phase = TrainingPhase(epochs, start=recipe.epochs - 1, constant_lr=True)
    train(
        net,
        data.train,
        data.validation,
        recipe=recipe,
        phase=phase,
        batch_size=dense.config.batch_size,
        numerics=Numerics(),
        generator=generator,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = (options.folder or Path(mkdtemp(prefix="compression-"))).absolute()
    for label in options.networks:
        bench_ = Bench(label, NETWORKS[label], root / label, options.epochs)
        bench_.folder.mkdir(parents=True, exist_ok=True)
        rows = [*uniform(bench_), *torch_pruned(bench_), *compressed(bench_, options.trials)]
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[label] = {
            "model": bench_.model,
            "trials": options.trials,
            "epochs": options.epochs,
            "rows": list(map(vars, rows)),
        }
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(f"{label}: {len(rows)} networks", flush=True)


if __name__ == "__main__":
    main()
