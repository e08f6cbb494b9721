"""What a run is called in MLflow: names tell apart what the space tells apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config import DenseConfig, Json, TrialConfig, method_name
from orchestrator.space import hyperparameters
from orchestrator.space.overrides import TECHNIQUE_AXES
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Range
from orchestrator.trial.params import amount_text, params

SAID = ("technique", *TECHNIQUE_AXES, "amount", "start", "seed")  # in every name, or in the technique's label
UNSAID = ("none", "after")  # that nothing was done goes without saying


def varied_axes(space: Space) -> tuple[str, ...]:
    """The axes with more than one value, or with a method whose options have; without those in every name."""
    choices = space.choices()
    return tuple(axis for axis in choices if axis not in SAID and _varies(space, axis, choices[axis]))


def dense_name(config: DenseConfig, varied: Sequence[str]) -> str:
    return f"dense {_network(config, varied)} seed {config.seed}"


def trial_name(config: TrialConfig, varied: Sequence[str]) -> str:
    """As `unstructured 90% mlp rewind seed 0`; of an adaptive schedule its name stands for the amount."""
    network = _network(config.dense, varied)
    told = params(config)
    done = (str(told[axis]) for axis in varied if axis in told and not _of_network(axis))
    words = (config.technique, amount_text(config), network, *(text for text in done if text not in UNSAID))
    return " ".join((*words, f"seed {config.dense.seed}"))


def _varies(space: Space, axis: str, choice: Choice) -> bool:
    if isinstance(choice, Range) or len(choice) > 1:
        return True
    options = (
        hyperparameters.hyperparameters_of(axis, choice[0], space.axes.options)
        if axis in hyperparameters.METHOD_REGISTRIES
        else {}
    )
    return any(isinstance(values, Range) or len(values) > 1 for values in options.values())


def _of_network(axis: str) -> bool:
    return axis in ("model", "dataset", "batch_size") or axis.startswith("train.")


def _network(config: DenseConfig, varied: Sequence[str]) -> str:
    told = params(config)
    start = () if config.start == "scratch" else (f"from {config.start}",)
    model = str(told["model"]) if "model" in varied else method_name(config.model)
    return " ".join((model, *start, *_values(told, [axis for axis in varied if _of_network(axis)])))


def _values(told: dict[str, Json], axes: Sequence[str]) -> Iterator[str]:
    for axis in axes:
        value = told.get(axis)
        if axis == "dataset":
            yield str(value)
        elif axis == "batch_size":
            yield f"batch {value}"
        elif axis.startswith("train.") and value is not None:
            yield f"{axis.removeprefix('train.')} {value}"
