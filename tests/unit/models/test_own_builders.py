"""Networks of one's own files: what a builder may look like, and what each mistake says."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch

import models
from pruning.user_code import own_code

HEAD = "import torch\nfrom torch import nn\n"
SMALL = (
    "def small(input_shape, num_classes, *, width=8, act=nn.ReLU, sizes=(1, 2)):\n"
    "    '''A small network.'''\n    assert isinstance(sizes, tuple)\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), act(), nn.Linear(width, num_classes))\n"
)
NET = (
    "class Net(nn.Module):\n    def __init__(self, num_classes=10, width=4):\n        super().__init__()\n"
    "        self.layer = nn.Linear(64, num_classes)\n"
    "    def forward(self, x):\n        return self.layer(x.flatten(1))\n"
)
SHAPE = (1, 8, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(HEAD + SMALL + NET)
    return tmp_path


def build(text: str) -> torch.nn.Module:
    return models.build(text, input_shape=SHAPE, num_classes=10)


def test_functions_and_classes_are_built_with_their_options(folder: Path) -> None:
    name, options = models.resolve("net.py:small(width=3)")
    assert own_code.shown(name) == "net.py:small"
    assert options == {"width": 3, "sizes": (1, 2)}  # a class is no literal, and keeps its default
    net = build("net.py:small(width=3, sizes=[3, 4])")
    assert net[1].weight.shape == (3, 64)
    assert net.training
    assert build("net.py:Net").layer.out_features == 10
    assert models.resolve("net.py:Net(width=9)")[1] == {"width": 9}


def test_the_pinned_text_builds_the_same_after_the_file_changed(folder: Path) -> None:
    name, _ = models.resolve("net.py:small")
    (folder / "net.py").write_text(HEAD + SMALL.replace("width=8", "width=5"))
    assert build(name)[1].out_features == 8
    assert build("net.py:small")[1].out_features == 5


def test_first_two_parameters_of_other_names_are_shape_and_classes(folder: Path) -> None:
    renamed = SMALL.replace("input_shape, num_classes", "shape, classes")
    (folder / "net.py").write_text(HEAD + renamed.replace("width, num_classes)", "width, classes)"))
    assert build("net.py:small(width=2)")[3].weight.shape == (10, 2)


def test_a_function_may_take_any_option(folder: Path) -> None:
    (folder / "net.py").write_text(
        f"{HEAD}def f(input_shape, num_classes, **options):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, **options))\n"
    )
    assert models.resolve("net.py:f(bias=False)")[1] == {"bias": False}
    assert build("net.py:f(bias=False)")[1].bias is None


def test_what_the_check_of_outputs_does_leaves_no_trace(folder: Path) -> None:
    (folder / "net.py").write_text(
        f"{HEAD}def f(input_shape, num_classes):\n    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), "
        "nn.Dropout(), nn.Linear(64, num_classes))\n    net[0].eval()\n    return net\n"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = build("net.py:f")
        drawn = torch.rand(1)
        torch.manual_seed(0)
        second = build("net.py:f")
        assert torch.equal(drawn, torch.rand(1))
    assert [module.training for module in first] == [False, True, True, True]
    assert first[0].num_batches_tracked == 0
    assert torch.equal(first[3].weight, second[3].weight)


def test_torchvision_is_named_where_it_is_imported(folder: Path) -> None:
    assert models.built_from("net.py:small") == ()
    (folder / "part.py").write_text("def later():\n    from torchvision.models import resnet18\n")
    (folder / "net.py").write_text(f"{HEAD}import part\n{SMALL}")
    assert models.built_from("net.py:small") == ("torchvision",)


def test_the_signature_is_what_a_space_may_set(folder: Path) -> None:
    builder = models.find_builder("net.py:small")
    assert str(inspect.signature(builder)) == "(input_shape, num_classes, /, *, width=8, sizes=(1, 2))"
    assert builder.__doc__ == "A small network."


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (SMALL, "small(widht=3)", "unknown option of 'net.py:small' 'widht'; did you mean width?"),
        (SMALL, "small(act=3)", "unknown option of 'net.py:small' 'act'; known: width, sizes"),
        ("def f(): ...\n", "f", "net.py:f takes (), and no num_classes; write f(input_shape, num_classes, *, "
         "option=default)"),
        ("def f(num_classes, depth, lr=1): ...\n", "f",
         "net.py:f needs depth as well; write net.py:f(depth=...), or give it a default"),
        ("def f(input_shape, num_classes): return 3\n", "f",
         "net.py:f returns a value of type int, and no torch.nn.Module"),
        ("def f(input_shape, num_classes):\n    return {}[num_classes]\n", "f",
         "net.py:f: KeyError: 10 (net.py, line 4)"),
        (NET.replace("64", "63"), "Net", "net.py:Net does not take images of (1, 8, 8): RuntimeError: *"),
        (NET.replace("(64, num_classes)", "(64, 7)"), "Net",
         "net.py:Net gives out [2, 7] for 2 images of (1, 8, 8); a tensor [N, 10] of class scores is needed"),
        (NET.replace("self.layer(x", "[x], self.layer(x"), "Net",
         "net.py:Net gives out a value of type tuple; a tensor [N, 10] of class scores is needed"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(folder: Path, code: str, text: str, message: str) -> None:
    (folder / "net.py").write_text(HEAD + code)
    for device in ("meta", "cpu"):  # a plan builds networks without storage
        with pytest.raises(ValueError) as caught, torch.device(device):
            build(f"net.py:{text}")
        assert str(caught.value).startswith(message.removesuffix("*"))
        assert len(str(caught.value).splitlines()) == 1


def test_a_network_that_reads_values_is_checked_with_storage(folder: Path) -> None:
    (folder / "net.py").write_text(
        HEAD + NET.replace("return self", "assert x.sum().item() == 0\n        return self")
    )
    with torch.device("meta"):
        build("net.py:Net")
    assert build("net.py:Net").layer.weight.shape == (10, 64)


@pytest.mark.parametrize(
    "text", ["net.py:small(3)", "net.py:small()()", "net.py:small.x", "my net.py:small", "net.py"]
)
def test_other_forms_are_refused(folder: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"is no model|unknown model"):
        build(text)


def test_an_unknown_name_says_how_to_bring_one_s_own(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown model 'mlpp'; did you mean mlp.*path/to/file\.py:function"
    ):
        build("mlpp")


@pytest.mark.parametrize("strict", [False, True])
def test_such_a_network_is_copied_and_exported_as_any_other(folder: Path, strict: bool) -> None:
    (folder / "part.py").write_text("SCALE = 2.0\n")
    lazy = NET.replace("return self", "from part import SCALE\n        return SCALE * self")
    # A strict export imports in its own way, so that an import inside `forward` would not be found.
    early = f"from part import SCALE\n{NET}".replace("return self", "return SCALE * self")
    (folder / "net.py").write_text(HEAD + (early if strict else lazy))
    net = copy.deepcopy(build("net.py:Net")).eval()
    images = torch.rand(2, *SHAPE)
    program = torch.export.export(net, (images,), strict=strict).module()
    assert torch.equal(program(images), net(images))
