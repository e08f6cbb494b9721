"""The names that a space file may use, read from the source text: help and completion load no library.

The registries say the same once they are imported, and a test compares the two.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from extensions import entries
from orchestrator.config import Control, Start, When
from orchestrator.data.datasets import DATASETS, OWN

SPACES = Path(__file__).parent.parent / "spaces"
# Registry, which is the kind's name in the plural, -> the word for one of it, and the axis that takes it.
REGISTRIES = {
    "criteria": ("criterion", "criterion"),
    "granularities": ("granularity", "granularity"),
    "schedules": ("schedule", "schedule"),
    "recoveries": ("recovery", "recover"),
    "preparations": ("preparation", "prepare"),
    "distillations": ("distillation", "distill"),
    "stops": ("stop", "stop"),
}
KINDS = ("spaces", "models", "datasets", "techniques", *REGISTRIES)


def names(kind: str) -> dict[str, str]:
    """Name -> one line about it, for one of KINDS; "" where only its package could tell."""
    if kind == "spaces":
        return {file.stem: _about(file) for file in sorted(SPACES.glob("*.yaml"))}
    if kind == "models":
        built = {name: _summary_of("models", builder) for name, builder in _dict("models", "OWN")}
        return {**built, **dict.fromkeys(plugin_names(kind), "")}
    if kind == "datasets":
        return {**{name: info.about for name, info in OWN.items()}, **dict.fromkeys(plugin_names(kind), "")}
    if kind == "techniques":
        return {name: _last_text(call) for name, call in _dict("orchestrator", "TECHNIQUES")}
    found = {name: method.summary for name, method in _registered()[kind].items()}
    return dict(sorted({**found, **dict.fromkeys(plugin_names(kind), "")}.items()))


def space_text(name: str) -> str | None:
    """A named space's file; None where nothing, or something else as well, bears the name."""
    kinds = [kind for kind in KINDS if name in names(kind)]
    return (SPACES / f"{name}.yaml").read_text(encoding="utf-8") if kinds == ["spaces"] else None


def plugin_names(kind: str) -> list[str]:
    """The names that other packages bring; what they are about is in their code."""
    groups = {"models": "models.builder", "datasets": DATASETS.group}
    group = groups.get(kind) or f"pruning.{REGISTRIES.get(kind, ('',))[0]}"
    return sorted(entries(group).keys() - own_names(kind))


def own_names(kind: str) -> set[str]:
    """The names of this package's own parts, which no other package can take."""
    if kind == "models":
        return {name for name, _ in _dict("models", "OWN")}
    return set(OWN) if kind == "datasets" else set(_registered().get(kind, ()))


def settable() -> list[str]:
    """The keys of --set: every axis, every field of the recipe, protect, and the fields of `search`."""
    return [*_fields("Choices"), "protect", *(f"search.{name}" for name in _fields("Search"))]


def tunable() -> list[str]:
    """Every METHOD.OPTION that may be an axis, and with it a key of --set."""
    methods = {kind: found.items() for kind, found in _registered().items() if kind != "stops"}
    pairs = (pair for found in methods.values() for pair in found)
    return sorted({f"{name}.{option}" for name, method in pairs for option in method.options})


def values(axis: str) -> dict[str, str]:
    """Name -> one line, for an axis that takes names; empty for one that takes numbers."""
    plural = {"model": "models", "dataset": "datasets", "technique": "techniques"}
    plural |= {taker: kind for kind, (_, taker) in REGISTRIES.items() if kind != "stops"}
    if axis in plural:
        return names(plural[axis])
    words = {"when": get_args(When), "control": get_args(Control), "start": get_args(Start)}
    words["scope"] = _scopes()
    return dict.fromkeys(words.get(axis, ()), "")


def _about(file: Path) -> str:
    """What a named space says of itself, on one line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("about:")), "")


@cache
def _trees(package: str, word: str) -> tuple[ast.Module, ...]:
    """The modules of a package whose text has `word` in it; the package is found, and not imported."""
    spec = find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    texts = (file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py")))
    return tuple(ast.parse(text) for text in texts if word in text)


@dataclass(frozen=True)
class _Method:
    summary: str
    options: tuple[str, ...]


@cache
def _registered() -> dict[str, dict[str, _Method]]:
    """Kind -> name -> method, from `@kind.register(...)` above functions."""
    found: dict[str, dict[str, _Method]] = {kind: {} for kind in REGISTRIES}
    for package in ("pruning", "orchestrator"):
        for function in _functions(_trees(package, ".register(")):
            for call in (item for item in function.decorator_list if isinstance(item, ast.Call)):
                kind, _, verb = ast.unparse(call.func).rpartition(".")
                if kind in found and verb == "register":
                    said = {word.arg: word.value for word in call.keywords}
                    name = _text(call.args[0] if call.args else said.get("name")) or function.name
                    found[kind][name] = _Method(_text(said.get("summary")), _options(function))
    return found


def _options(function: ast.FunctionDef) -> tuple[str, ...]:
    """The keyword-only parameters with a default."""
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return tuple(word.arg for word, default in pairs if default is not None)


def _functions(trees: tuple[ast.Module, ...]) -> Iterator[ast.FunctionDef]:
    return (node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef))


def _dict(package: str, name: str) -> Iterator[tuple[str, ast.expr]]:
    """The entries of the literal dict `name` of a package."""
    for tree in _trees(package, name):
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if isinstance(value, ast.Dict) and any(getattr(t, "id", "") == name for t in targets):
                yield from ((_text(key), item) for key, item in zip(value.keys, value.values, strict=True))


def _summary_of(package: str, builder: ast.expr) -> str:
    """The first line of a function's docstring."""
    name = ast.unparse(builder)
    found = (node for node in _functions(_trees(package, f"def {name}(")) if node.name == name)
    return next(((ast.get_docstring(node) or "").partition("\n")[0] for node in found), "")


def _fields(name: str) -> list[str]:
    """The fields of axes.Choices or objectives.Search, by the names that a file uses."""
    (found,) = (
        node
        for tree in _trees("orchestrator", f"class {name}(")
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    fields = (node for node in found.body if isinstance(node, ast.AnnAssign))
    return [_alias(field.value) or ast.unparse(field.target) for field in fields]


def _alias(value: ast.expr | None) -> str:
    words = value.keywords if isinstance(value, ast.Call) else []
    return next((_text(word.value) for word in words if word.arg == "alias"), "")


def _scopes() -> tuple[str, ...]:
    nodes = (node for tree in _trees("pruning", "Scope = Literal[") for node in tree.body)
    given = [n.value for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "Scope"]
    words = [node for value in given for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return tuple(map(_text, words))


def _last_text(call: ast.expr) -> str:
    return _text(call.args[-1]) if isinstance(call, ast.Call) else ""


def _text(node: ast.expr | None) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""
