"""torchvision beside any build of torch: declared where its compiled library cannot load, only there."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import forked

ROOT = Path(__file__).parents[3]

# A torchvision that records, when it is imported, whether the two operators were already declared.
FAKE = """
import torch
def has(name):
    return any(schema.name == "torchvision::" + name for schema in torch._C._jit_get_all_schemas())
found = [name for name in ("nms", "qnms") if has(name)]
datasets = models = transforms = None
"""
REPORT = """
from models.torchvision_compat import DECLARED
import torchvision
print(DECLARED is None, *torchvision.found)
"""


def run(code: str, *, first: Path | None = None) -> str:
    """What `code` prints in a process without torchvision, and with the folder `first` first on its path."""
    path = f"import sys; sys.path[:0] = {[str(place) for place in (first, ROOT) if place]!r}\n"
    fresh = "assert not {'torchvision', 'models.torchvision_compat'} & sys.modules.keys()\n"
    done = forked.python(path + fresh + code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fake_torchvision(folder: Path) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(FAKE, encoding="utf-8")
    return package


def test_torchvision_works_through_the_module() -> None:
    code = """
import torch
from models.torchvision_compat import datasets, models, transforms
assert models.densenet121(weights=None).classifier.in_features == 1024
assert datasets.MNIST.classes[3].startswith("3")
assert transforms.functional.hflip(torch.tensor([[[1, 2]]])).tolist() == [[[2, 1]]]
from torchvision import ops
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
print(ops.box_area(boxes).tolist())
"""
    assert run(code) == "[1.0]"


def test_both_operators_are_declared_where_there_is_no_compiled_library(tmp_path: Path) -> None:
    fake_torchvision(tmp_path)
    assert run(REPORT, first=tmp_path) == "False nms qnms"


def test_both_operators_are_declared_where_the_compiled_library_cannot_load(tmp_path: Path) -> None:
    (fake_torchvision(tmp_path) / "_C.so").write_bytes(b"compiled for something else")
    assert run(REPORT, first=tmp_path) == "False nms qnms"


def test_nothing_is_declared_where_the_compiled_library_loads(tmp_path: Path) -> None:
    spec = find_spec("safetensors._safetensors_rust")  # any library that loads will do
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(spec.origin, fake_torchvision(tmp_path) / "_C.so")
    assert run(REPORT, first=tmp_path) == "True"


def test_only_a_model_that_needs_torchvision_imports_it() -> None:
    code = """
import sys, models
models.build("mlp", input_shape=(1, 8, 8), num_classes=10)
print("torchvision" in sys.modules)
"""
    assert run(code) == "False"
