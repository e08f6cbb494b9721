"""Names of runs in MLflow, with the values of the axes that vary in a space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config import DenseConfig, Json, TrialConfig, method_name
from orchestrator.space import hyperparameters
from orchestrator.space.overrides import TECHNIQUE_AXES
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Range
from orchestrator.trial.params import amount_text, params

# In every name, or in the label of the technique.
NAMED_AXES = ("technique", *TECHNIQUE_AXES, "allocate", "amount", "start", "seed")
UNNAMED_VALUES = ("none", "after")  # of axes where nothing is done: a name leaves them out


def varied_axes(space: Space) -> tuple[str, ...]:
    """Return the axes with several values, or with a method whose options have, save for NAMED_AXES."""
    choices = space.choices()
    return tuple(axis for axis in choices if axis not in NAMED_AXES and _varies(space, axis, choices[axis]))


def dense_name(config: DenseConfig, varied: Sequence[str]) -> str:
    """Return the name of a dense run, such as `dense mlp seed 0`."""
    return f"dense {_network(config, varied)} seed {config.seed}"


def trial_name(config: TrialConfig, varied: Sequence[str]) -> str:
    """Return the name of a trial's run, such as `unstructured 90% mlp rewind seed 0`.

    An adaptive schedule has its name in place of the amount.
    """
    network = _network(config.dense, varied)
    values = params(config)
    texts = (str(values[axis]) for axis in varied if axis in values and not _is_dense_axis(axis))
    methods = (text for text in texts if text not in UNNAMED_VALUES)
    words = (config.technique, amount_text(config), network, *methods)
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


def _is_dense_axis(axis: str) -> bool:
    return axis in ("model", "dataset", "batch_size") or axis.startswith("train.")


def _network(config: DenseConfig, varied: Sequence[str]) -> str:
    values = params(config)
    start = () if config.start == "scratch" else (f"from {config.start}",)
    model = str(values["model"]) if "model" in varied else method_name(config.model)
    return " ".join((model, *start, *_value_texts(values, [axis for axis in varied if _is_dense_axis(axis)])))


def _value_texts(values: dict[str, Json], axes: Sequence[str]) -> Iterator[str]:
    for axis in axes:
        value = values.get(axis)
        if axis == "dataset":
            yield str(value)
        elif axis == "batch_size":
            yield f"batch {value}"
        elif axis.startswith("train.") and value is not None:
            yield f"{axis.removeprefix('train.')} {value}"
