"""The names that a space file may use, read from the registries: one line of each, or the whole."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from textwrap import indent

from extensions import PluginError
from models import BUILDERS
from orchestrator.config import method_text
from orchestrator.data.datasets import DATASETS, DatasetInfo, split_sizes
from orchestrator.errors import UsageError, unknown_name
from orchestrator.space import space
from orchestrator.space.pruners import pruners
from orchestrator.space.techniques import TECHNIQUES
from orchestrator.trial.distillation import distillations
from orchestrator.trial.preparation import preparations
from orchestrator.trial.recovery import recoveries
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Hyperparameter, Registry, hyperparameters
from pruning.schedules import schedules


@dataclass(frozen=True)
class Item:
    """One name. `axis` is where a file takes it (`stop` is a key); a space has none, and is its `text`."""

    name: str
    about: str
    text: str
    axis: str = ""
    paper: str = ""
    options: Mapping[str, Hyperparameter] = field(default_factory=dict)

    def example(self) -> str:
        """A line for a space file, with every option that has a default."""
        given = {key: option.default for key, option in self.options.items() if option.default is not None}
        text = method_text(self.name, {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()})
        value = json.dumps(text) if given else text
        return f"stop: {value}" if self.axis == "stop" else f"axes: {{{self.axis}: [{value}]}}"


def names(kind: str) -> list[tuple[str, str]]:
    """(name, one line about it) for `kind`. UsageError for an unknown kind."""
    return [(item.name, item.about) for item in items(kind)]


@cache
def items(kind: str) -> tuple[Item, ...]:
    """Everything of one kind. UsageError for an unknown kind."""
    if kind not in KINDS:
        raise UsageError(unknown_name("kind of name", kind, KINDS))
    return tuple(KINDS[kind]())


def describe(name: str) -> str:
    """All that is known of a name, of every kind that has it; a space alone is its file, as it is.

    UsageError, with the nearest names of all kinds, where none has it.
    """
    known = [item for kind in KINDS for item in items(kind)]
    found = [item for item in known if item.name == name]
    if not found:
        _check_plugins(name)
        raise UsageError(unknown_name("name", name, {item.name for item in known}))
    if len(found) == 1 and not found[0].axis:
        return found[0].text
    return "\n".join(_described(item) for item in found)


def _check_plugins(name: str) -> None:
    """UsageError, with the reason, where another package lists the name and cannot be imported."""
    try:
        for parts in (BUILDERS, DATASETS):
            parts.get(name)
        for registry in (
            criteria,
            granularities,
            schedules,
            recoveries,
            preparations,
            distillations,
            pruners,
        ):
            if name in tuple(registry):
                registry.get(name)
    except PluginError as error:
        raise UsageError(str(error)) from error


def _described(item: Item) -> str:
    if not item.axis:
        return f"# space {item.name}\n{item.text}"
    lines = [f"{item.axis} {item.name}: {item.about}", *([indent(item.text, "  ")] if item.text else [])]
    for name, option in item.options.items():
        lines.append(f"  option {name}: {option.allowed}; {option.default!r} if not given")
    lines += [f"  paper: {item.paper}"] if item.paper else []
    return "\n".join([*lines, f"  in a space file: {item.example()}", ""])


def _spaces() -> list[Item]:
    loaded = [space.load_space(name) for name in space.names()]
    return [Item(found.name, found.about, found.text) for found in loaded]


def _models() -> list[Item]:
    found = []
    for name, build in BUILDERS.working():
        about, _, text = (inspect.getdoc(build) or "").partition("\n")
        found.append(Item(name, about, text.strip(), "model", options=hyperparameters(build)))
    return found


def _datasets() -> list[Item]:
    options = hyperparameters(split_sizes)
    return [
        Item(name, info.about, _facts(info), "dataset", options=options) for name, info in DATASETS.working()
    ]


def _facts(info: DatasetInfo) -> str:
    train, validation, test = info.split_sizes
    size = "x".join(map(str, info.input_shape))
    files = "inside scikit-learn" if info.source is None else f"`orchestrate data fetch {info.name}`"
    files = files if info.read is None else f"read by {info.read.__module__}"
    return (
        f"Images {size}, {info.num_classes} classes; {train} for training, {validation} for validation, "
        f"{test} for the test. Files: {files}."
    )


def _techniques() -> list[Item]:
    found = []
    for name, known in TECHNIQUES.items():
        text = f"Criterion {known.criterion}, granularity {known.granularity}, scope {known.scope}."
        options = hyperparameters(criteria.get(known.criterion).function)
        found.append(Item(name, known.about, text, "technique", options=options))
    return found


def _registered(registry: Registry, axis: str) -> Callable[[], list[Item]]:
    def listed() -> list[Item]:
        return [
            Item(
                method.name,
                str(method.traits.get("summary", "")),
                inspect.getdoc(method.function) or "",
                axis,
                str(method.traits.get("paper", "")),
                hyperparameters(method.function),
            )
            for method in registry.working()
        ]

    return listed


KINDS: dict[str, Callable[[], list[Item]]] = {
    "spaces": _spaces,
    "models": _models,
    "datasets": _datasets,
    "techniques": _techniques,
    "criteria": _registered(criteria, "criterion"),
    "granularities": _registered(granularities, "granularity"),
    "schedules": _registered(schedules, "schedule"),
    "recoveries": _registered(recoveries, "recover"),
    "preparations": _registered(preparations, "prepare"),
    "distillations": _registered(distillations, "distill"),
    "stops": _registered(pruners, "stop"),
}
