"""Who may know whom, read from the imports; and what a start of the program may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "pruning", "orchestrator")

# Rooms, ground first: a module imports from its own room and from lower lines only. Imports inside of
# functions and under TYPE_CHECKING count, too.
LAYERS = (
    ("pruning", "formatting", "keys"),
    ("models",),  # of pruning it knows what needs no torch alone
    ("errors", "config", "redaction"),
    ("system",),
    ("data",),
    ("images",),  # an earlier import path
    ("training",),
    ("trial",),
    ("storage", "space"),
    ("tracking",),
    ("planning",),
    ("analysis", "model_io"),
    ("report", "latency", "shipping"),
    ("execution",),
    ("stopping",),  # an earlier import path
    ("doctor",),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Names that other people's code imports; they are looked up when asked for.
PUBLIC = "orchestrator"
# Library -> the only modules (or packages) that may import it.
OWNERS = {
    "mlflow": ("orchestrator.tracking",),
    "sqlalchemy": ("orchestrator.tracking",),
    "requests": ("orchestrator.tracking",),
    "typer": ("orchestrator.cli",),
    "ray": ("orchestrator.execution",),
    "optuna": (
        "orchestrator.planning.sampling",
        "orchestrator.execution.early_stopping",
        "orchestrator.analysis.importance",
    ),
    "onnx": ("orchestrator.model_io.formats", "orchestrator.model_io.quantization"),
    "onnxruntime": (
        "orchestrator.model_io.formats",
        "orchestrator.model_io.quantization",
        "orchestrator.latency.onnx_process",
    ),
    "openvino": ("orchestrator.model_io.converters",),
    "litert_torch": ("orchestrator.model_io.converters",),
    "ai_edge_litert": ("orchestrator.model_io.converters",),
    "timm": ("models.timm_models",),
    "torchvision": ("models.torchvision_compat",),
    "jinja2": ("orchestrator.report.components",),
    "torch_pruning": (),
}
DYNAMIC = ("__import__", "import_module", "importlib.import_module")
HEAVY = {"torch", "ray", "mlflow", "optuna", "sklearn", "pandas", "matplotlib", "scipy", "plotly", "jinja2"}


@cache
def modules() -> dict[str, Path]:
    """Dotted module name -> file, for every module of the three packages."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def imports(tree: ast.AST, *, package: str, nested: bool = True) -> Iterator[str]:
    """Every module name that `tree` imports; without `nested`, only those of the module's own import."""
    for node in ast.walk(tree) if nested else _at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            if not set(names) <= modules().keys():
                yield base
            yield from names
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in DYNAMIC:
            yield from (str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not lazy and not typing_only:
            yield node
            yield from _at_import(node)


@cache
def imported_by(name: str, *, nested: bool = True) -> set[str]:
    package = name if modules()[name].stem == "__init__" else name.rpartition(".")[0]
    return set(imports(tree_of(name), package=package, nested=nested))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room_of(name: str) -> str:
    """`trial` for `orchestrator.trial.run`; packages beside `orchestrator` are rooms of their own."""
    package, _, rest = name.partition(".")
    room = rest.partition(".")[0] if package == "orchestrator" and rest else package
    return "cli" if room == "__main__" else room


def test_of_pruning_models_know_user_code_alone() -> None:
    targets = {target for name in modules() if room_of(name) == "models" for target in imported_by(name)}
    from_pruning = {target for target in targets & modules().keys() if room_of(target) == "pruning"}
    assert from_pruning
    assert {target for target in from_pruning if not within(target, "pruning.user_code")} == set()


def test_a_module_imports_from_lower_layers_only() -> None:
    known = modules()
    wrong = [
        f"{name} imports {target}"
        for name in known
        if name != PUBLIC
        for target in sorted(imported_by(name) & known.keys() - {"orchestrator"})
        if room_of(target) != room_of(name) and LEVELS[room_of(target)] >= LEVELS[room_of(name)]
    ]
    assert not wrong


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_alone(library: str) -> None:
    users = {name for name in modules() if any(within(target, library) for target in imported_by(name))}
    strangers = {name for name in users if not any(within(name, owner) for owner in OWNERS[library])}
    assert not strangers


def test_ray_is_started_in_one_module() -> None:
    """Only there is it bound to loopback and given a token."""
    starters = {
        name
        for name in modules()
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init"
    }
    assert starters == {"orchestrator.execution.ray_start"}


def test_a_client_of_mlflow_is_made_in_one_place_and_used_in_the_tracking_package_alone() -> None:
    """Elsewhere a store could be made by who only reads, and its failures be tracebacks."""
    makers, users = set(), set()
    for name in modules():
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "MlflowClient":
                makers.add(name)
            if isinstance(node, ast.Attribute) and node.attr == "client":
                users.add(name.rpartition(".")[0])
    assert makers == {"orchestrator.tracking.connection"}
    assert users == {"orchestrator.tracking"}


def test_imports_never_go_in_a_circle() -> None:
    """Modules of one room, too; imports inside of functions and for types count."""
    known = modules()
    graph = {name: (imported_by(name) & known.keys()) - {name} for name in known}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(known)


# What a start imports -> the libraries that are not loaded by then. One process imports them in this order,
# so each is also held to what those before it load: no less strict, since the sets only shrink.
STARTS = {
    "pruning.user_code.plugins": HEAVY | {"numpy"},
    "pruning.user_code.stored_code": HEAVY | {"numpy"},
    "pruning.user_code.functions": HEAVY | {"numpy"},
    "orchestrator, orchestrator.cli": HEAVY,
    "orchestrator.execution.sweep": HEAVY - {"torch"},  # Ray starts before MLflow is loaded
    "orchestrator.execution.ray_start": {"mlflow", "optuna", "sklearn", "pandas"},  # and before Tune is
    # In every driver, and in every worker.
    "orchestrator.execution.tune_experiment, orchestrator.execution.trainable": {
        "optuna",
        "sklearn",
        "matplotlib",
    },
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The libraries that are loaded after each of the starts."""
    lines = (
        f"import {start}; print(*{{name.partition('.')[0] for name in sys.modules}}, flush=True)"
        for start in STARTS
    )
    code = "\n".join(["import sys", *lines])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(STARTS, map(set, map(str.split, done.stdout.splitlines())), strict=True))


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_nothing_heavy(start: str, loaded: dict[str, set[str]]) -> None:
    assert not STARTS[start] & loaded[start]


def test_no_form_of_import_is_overlooked() -> None:
    text = (
        "import ray.tune as t\nfrom ..pruning import step\nif TYPE_CHECKING:\n    import torch\n"
        "def later():\n    from mlflow import MlflowClient\n    importlib.import_module('optuna')\n"
    )
    tree = ast.parse(text)
    everything = {
        "ray.tune",
        "a.pruning",
        "a.pruning.step",
        "torch",
        "mlflow",
        "mlflow.MlflowClient",
        "optuna",
    }
    assert set(imports(tree, package="a.b")) == everything
    assert set(imports(tree, package="a.b", nested=False)) == {"ray.tune", "a.pruning", "a.pruning.step"}
