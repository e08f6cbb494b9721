"""Recoveries on the network that is cut, against the same recoveries under masks.

Both sides fine-tune one pruned cnn from equal weights, in the same order of images. Their test predictions
are equal, their bits are not. The time is that of the whole recovery: cutting, training, putting the weights
back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch

from benchmarks.harness import AtLeast, Job, SideResult, benchmark, main
from benchmarks.shared import make_images
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.system.memory import disable_malloc_trim
from orchestrator.training.evaluation import evaluate
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.recovery import recoveries

MODEL, EPOCHS, BATCH, IMAGES = "cnn", 2, 128, 1000
TARGETS = {0.5: 1.5, 0.7: 2.0, 0.9: 2.5}  # amount of channels -> speedup of the whole recovery


def recover(context: TrialContext, state: NetworkState, on: str) -> SideResult:
    """Fine-tune, and return the predictions on test images as a confusion matrix."""
    method = recoveries.get(f"finetune(epochs={EPOCHS}, on={on})")
    started = perf_counter()
    recovered = method(context, state, round=1)
    seconds = perf_counter() - started
    evaluation = evaluate(
        context.build_module(recovered), context.data.test, numerics=context.config.numerics
    )
    return SideResult(evaluation.confusion, {"seconds": seconds})


@benchmark
def finetune() -> Iterator[Job]:
    """Fine-tune a cnn of which 50%, 70% and 90% of the channels are removed."""
    torch.set_num_threads(1)
    disable_malloc_trim()  # as workers do
    config = DenseConfig(MODEL, "synthetic", BATCH, 0, Train(epochs=EPOCHS), Numerics(micro_batch=BATCH))
    context = make_context(config, make_images(IMAGES, noise=0.5))
    context = replace(context, dense_state=stages.dense(context))
    for amount, target in TARGETS.items():
        prune = Prune("l2", "channel", "layer", "one_shot", amount)
        pruned = replace(context, trial=TrialConfig(config, prune, "none", "structured"))
        state = stages.prune_round(pruned, context.trained_dense(), round=1)
        yield Job(
            f"fine-tuning a cnn without {amount:.0%} of its channels",
            ours=partial(recover, pruned, state, "cut"),
            baseline=partial(recover, pruned, state, "masked"),
            baseline_name="under masks",
            claims=(AtLeast(target),),
            rounds=3,
            equal="predictions on all test images",
            is_equal=torch.equal,
        )


if __name__ == "__main__":
    main(__file__)
