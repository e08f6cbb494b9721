"""`file.py:function` as data: what it may return, what is refused, keys, and whose code runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import orchestrate

from orchestrator.data import datasets, files, loading, paths
from orchestrator.data.sources import own_data
from orchestrator.data.sources.registry import find_source
from orchestrator.errors import DataError, SpaceError
from orchestrator.planning.fingerprints import clear_caches, dense_code
from orchestrator.planning.plan import make_plan
from orchestrator.space.space import load_space
from orchestrator.space.values import canonical_dataset
from pruning.user_code import own_code

Text = Callable[..., str]
HEAD = """\
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

X = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
Y = np.arange(30) % 3


class Pairs(Dataset):
    def __init__(self, images, labels=Y, **attributes):
        self.images, self.labels = images, labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


"""
X = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
Y = np.arange(30) % 3


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Text:
    """Write data.py with a function `load` of this body, and return its canonical text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "_workers_folder", None)
    clear_caches()

    def write(body: str, *, options: str = "", call: str = "") -> str:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / "data.py").write_text(f"{HEAD}def load({options}):\n{lines}\n")
        return canonical_dataset(f"data.py:load{call}")

    return write


# ---- what it may return


@pytest.mark.parametrize(
    "body",
    [
        "return X, Y",
        "return [X, list(Y)]",
        "return {'x': X[:, None], 'y': Y[:, None]}",
        "return {'x': torch.tensor(X), 'y': torch.tensor(Y)}",
        "return (X / 255).astype(np.float32), Y.astype(float)",
        "import pandas\nreturn X, pandas.Series(Y)",
        "return X.astype(float), Y",
        "return TensorDataset(torch.tensor(X), torch.tensor(Y))",
        "return TensorDataset(torch.tensor(X)[:, None].float() / 255, torch.tensor(Y))",
        "return Pairs([Image.fromarray(x) for x in X])",
        "return Pairs(X[:, :, :, None])",
        "return Subset(Pairs(X), range(30))",
        "return {'train': Pairs(X)}",
    ],
)
def test_every_form_is_the_same_data_as_an_npz(body: str, text: Text, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    expected, own = files.read_raw(f"npz(path={str(tmp_path / 'a.npz')!r})"), text(body)
    raw = files.read_raw(own)
    assert np.array_equal(raw.images, expected.images)
    assert raw.images.dtype == np.uint8
    assert np.array_equal(raw.labels, expected.labels)
    assert raw.class_names == expected.class_names == ("0", "1", "2")
    assert raw.splits is not None
    assert expected.splits is not None
    for one, other in zip(raw.splits, expected.splits, strict=True):
        assert np.array_equal(one, other)
    facts, loaded = datasets.info(own), loading.load_dataset(own)
    assert facts.split_sizes == (len(loaded.train), len(loaded.validation), len(loaded.test))
    assert facts.input_shape == loaded.input_shape == (1, 6, 5)
    assert facts.class_names == loaded.class_names


@pytest.mark.parametrize(
    "body",
    [
        "return X[:21], Y[:21], X[21:], Y[21:]",
        "return (X[:21], Y[:21]), (X[21:], Y[21:])",
        "return Pairs(X[:21], Y[:21]), Pairs(X[21:], Y[21:])",
        "return {'test': Pairs(X[21:], Y[21:]), 'train': Pairs(X[:21], Y[:21])}",
        "return {'x': X[:21], 'y': Y[:21], 'x_test': X[21:], 'y_test': Y[21:]}",
    ],
)
def test_own_test_images_stay_the_test_set(body: str, text: Text) -> None:
    raw = files.read_raw(text(body))
    assert raw.splits is not None
    assert raw.splits[2].tolist() == list(range(21, 30))
    assert [len(split) for split in raw.splits] == [18, 3, 9]
    assert np.array_equal(raw.images[:, 0], X)


@pytest.mark.parametrize(
    "body",
    [
        "return {'x': X, 'y': Y, 'split': np.repeat([0, 1, 2], [15, 6, 9])}",
        "return {'x': X, 'y': Y, 'split': ['train'] * 15 + ['val'] * 6 + ['test'] * 9}",
        "ends = {'train': (0, 15), 'val': (15, 21), 'test': (21, 30)}\n"
        "return {name: Pairs(X[a:b], Y[a:b]) for name, (a, b) in ends.items()}",
    ],
)
def test_own_splits_decide(body: str, text: Text) -> None:
    raw = files.read_raw(text(body))
    assert raw.splits is not None
    assert [raw.images[split][:, 0].tolist() for split in raw.splits] == [
        X[:15].tolist(),
        X[15:21].tolist(),
        X[21:].tolist(),
    ]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return Pairs(X, Y + 1, classes=['N/A', 'a', 'b', 'c'])", ("a", "b", "c")),
        ("return Pairs(X, Y * 7 - 3)", ("-3", "4", "11")),
        ("return {'x': X, 'y': Y + 1, 'class_names': ['N/A', 'a', 'b', 'c']}", ("a", "b", "c")),
        ("return {'x': X, 'y': np.array(['c', 'a', 'b'])[Y]}", ("a", "b", "c")),
        ("return Pairs(X, [['dog', 'cat', 'owl'][y] for y in Y])", ("cat", "dog", "owl")),
        ("return Pairs(X, Y, classes=['a', 'b'])", ("0", "1", "2")),
        ("return Pairs(X, Y, classes=[7, 8, 9])", ("0", "1", "2")),
        ("return Pairs(X, [float(y) for y in Y])", ("0", "1", "2")),
    ],
)
def test_labels_are_numbered_from_0_and_classes_have_their_names(
    body: str, names: tuple[str, ...], text: Text
) -> None:
    raw = files.read_raw(text(body))
    assert raw.class_names == names
    assert sorted(set(raw.labels.tolist())) == [0, 1, 2]


def test_colours_keep_their_order_of_channels(text: Text) -> None:
    body = "return Pairs([Image.fromarray(np.stack([x, x // 2, x // 4], axis=2)) for x in X])"
    raw = files.read_raw(text(body))
    assert np.array_equal(raw.images, np.stack([X, X // 2, X // 4], axis=1))
    layout = "return {'x': np.stack([X[:, :3]] * 3, axis=1)[..., :3], 'y': Y, 'layout': 'first'}"
    assert files.read_raw(text(layout)).images.shape == (30, 3, 3, 3)


def test_a_class_is_called_and_options_arrive(text: Text, tmp_path: Path) -> None:
    own = text("return X[:n], Y[:n]", options="n=30, *, scale=1.0, only=(0, 1)", call="(n=24, only=[0, 1])")
    assert own_code.shown(own) == "data.py:load(n=24)"
    assert len(files.read_raw(own).labels) == 24
    for wrong, message in (
        ("(m=3)", "unknown option of data.py:load 'm'; known: classes, n, only, samples_per_class, scale"),
        ("(n='x')", r"data.py:load\(n='x'\): TypeError: slice indices must be integers"),
    ):
        with pytest.raises((ValueError, DataError), match=message):
            files.read_raw(canonical_dataset(f"data.py:load{wrong}"))
    (tmp_path / "data.py").write_text(
        f"{HEAD}class Mine(Pairs):\n    def __init__(self, root='x'):\n        super().__init__(X)\n"
    )
    assert len(files.read_raw(canonical_dataset("data.py:Mine")).labels) == 30


def test_torchvision_and_files_beside_it_can_be_imported(text: Text, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("COUNT = 24\n")
    own = text(
        "import torchvision\nfrom torchvision.datasets import FakeData\nfrom beside import COUNT\n"
        "return X[:COUNT], Y[:COUNT]"
    )
    assert len(files.read_raw(own).labels) == 24
    assert dense_code("slp", own).startswith("data.py=")
    assert "torchvision==" in dense_code("slp", own)
    (tmp_path / "beside.py").write_text("COUNT = 27\n")
    changed = canonical_dataset("data.py:load")
    assert changed != own
    assert len(files.read_raw(changed).labels) == 27
    assert len(files.read_raw(own).labels) == 24  # as the sweep was planned with it


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "it returns nothing; return"),
        ("pass", "it returns nothing; return"),
        ("return 3", "it returns a int; return"),
        ("return X", "it returns a ndarray; return"),
        ("return X, Y, X", "it returns 3 values; return"),
        ("return (x for x in X)", "it returns a generator; return"),
        ("raise OSError('no such disk')", r"OSError: no such disk \(data.py, line 23\)"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(data.py"),
        ("return {'images': X, 'y': Y}", "unknown key 'images'; known: class_names, layout, split, x"),
        ("return {'x': X}", "it has no array 'y'; it has x"),
        ("return {'x': X, 'y': Y, 'x_test': X}", "it has only one of x_test and y_test"),
        ("return {'x': X, 'y': Y, 'layout': 'lst'}", "unknown layout 'lst'; did you mean last"),
        ("return X, Y[:9]", r"y is \[9\], and there are 30 images"),
        ("return X, np.eye(3)[Y]", r"y is \[30, 3\]; give one number an image: of one-hot, the argmax"),
        ("return X, Y + 0.5", "y holds float64; give whole numbers, or texts"),
        ("return X, np.where(Y == 0, np.nan, Y)", "y holds float64; give whole numbers, or texts"),
        ("return X, Y * 0", "it has 1 classes; two or more are needed"),
        ("return X[:0], Y[:0]", "x has no images"),
        ("return X, np.array([object()] * 30)", "y holds Python objects"),
        ("return [[1, 2], [3]], [0, 1]", "x is no array"),
        ("return np.where(X > 250, np.nan, X), Y", "x has numbers from nan to nan"),
        ("return X.astype(float) - 128, Y", "x has numbers from -128 to 127"),
        ("return X[:, :4, :5, None, None], Y", r"x is \[30, 4, 5, 1, 1\]; images are"),
        ("return X, Y, X[:3] / 255, Y[:3]", "x holds uint8 and x_test holds float64; give one type"),
        ("return X, Y, X[:3, :2], Y[:3]", "images of its splits differ in shape"),
        ("return {'test': Pairs(X)}", "it has test; give train"),
        ("return {'train': Pairs(X), 'val': Pairs(X), 'validation': Pairs(X)}", "it has train, val, valid"),
        ("return {'train': Pairs(X), 'tset': Pairs(X)}", "unknown key 'tset'; did you mean test"),
        ("return Pairs(X, [])", "Pairs for train has no items"),
        ("return Pairs([X[0], X[1, :4]] * 15)", r"item 1 for train is \[4, 5\], and item 0 \[6, 5\]"),
        ("return Pairs([X[0], X[1] / 255] * 15)", "item 1 for train is float64, and item 0 uint8"),
        ("return Pairs([str(x) for x in Y])", "the image of item 0 for train is a str; give a Pillow image"),
        ("return Pairs(X[:, 0])", r"the image of item 0 for train is \[5\]; give \[H, W\]"),
        ("return Pairs(X, np.eye(3)[Y])", r"the label of item 0 for train is \[3\]; .* the argmax"),
        ("return Pairs(X, [None] * 30)", "the label of item 0 for train holds Python objects"),
        ("return Pairs(X, [*range(29), 'a'])", "labels for train are of int and str; give one type"),
        ("return Pairs(X, Y + 0.25)", "y holds float64; give whole numbers, or texts"),
        ("return Pairs(X, [float('nan')] * 30)", "y holds float64; give whole numbers, or texts"),
        ("return Pairs(torch.tensor(X) / 255 - 2)", "x has numbers from -2 to -1"),
        ("return Pairs(X[:3])", r"IndexError: index 3 is out of bounds"),
        (
            "class Endless(IterableDataset):\n    def __iter__(self):\n        yield X\nreturn Endless()",
            "Endless has no __len__, or no order; give a map-style Dataset with a length",
        ),
        (
            "class Short(Dataset):\n    def __getitem__(self, i):\n        return X[i], Y[i]\nreturn Short()",
            "Short has no __len__",
        ),
        (
            "class Dicts(Pairs):\n    def __getitem__(self, i):\n        return {'x': X[i]}\nreturn Dicts(X)",
            r"item 0 for train is a dict; \(image, label\) is needed",
        ),
        (
            "class Flipped(Pairs):\n    def __getitem__(self, i):\n        flip = torch.rand(()) < 0.5\n"
            "        return X[i, ::-1] if flip else X[i], Y[i]\nreturn Flipped(X)",
            r"item \d+ for train is another one when it is read again; leave random changes to train.augment",
        ),
        (
            "class Relabelled(Pairs):\n    def __getitem__(self, i):\n"
            "        return X[i], np.random.randint(9)\nreturn Relabelled(X)",
            r"item \d+ for train is another one when it is read again",
        ),
        ("return np.random.permutation(X), Y", "it returned other images or labels when it was called"),
        ("return X[torch.randperm(30)], Y", "it returned other images or labels when it was called"),
    ],
)
def test_whatever_is_wrong_is_one_line(body: str, message: str, text: Text) -> None:
    own = text(body)
    for call in (files.check_files, loading.digest, files.read_raw):
        own_data._steady.discard(own)
        with pytest.raises(DataError, match=message) as caught:
            call(own)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("data.py:load: ")
        assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("data.py:lood", "data.py has no function 'lood'; did you mean load"),
        ("dat.py:load", "there is no file dat.py; did you mean data.py"),
        ("data.py", "data.py names a file and no function; write data.py:function"),
        ("data.py:X", "data.py has no function 'X'"),
        ("data.py:need", r"data.py:need is no data set: .* write def need\(...\), with a default for every"),
        ("bad.py:load", r"bad.py cannot be imported: ZeroDivisionError: division by zero \(bad.py, line 1\)"),
        ("data.py:load(", "is no method; write name or name"),
    ],
)
def test_bad_names_are_usage_errors(written: str, message: str, text: Text, tmp_path: Path) -> None:
    text("return X, Y")
    with (tmp_path / "data.py").open("a") as file:
        file.write("\n\ndef need(root):\n    return X, Y\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message) as caught:
        canonical_dataset(written)
    assert "\n" not in str(caught.value)
    done = orchestrate("data", "check", written, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_what_it_prints_is_no_result_and_random_numbers_stay(
    text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = text("import random\nrandom.random(), torch.rand(3), np.random.rand()\nprint('hello')\nreturn X, Y")
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    files.read_raw(own)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "hello" in printed.err
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


PRINTS = """\
import ctypes, os, subprocess, sys
subprocess.run(["echo", "of a child"])
os.write(1, b"of a descriptor\\n")
libc = ctypes.CDLL(None)
libc.printf(b"of C\\n")
print("of Python", file=sys.__stdout__)
return X, Y"""


def test_whatever_writes_to_descriptor_1_leaves_results_clean(text: Text, tmp_path: Path) -> None:
    text(PRINTS)
    command = [sys.executable, "-m", "orchestrator", "data", "check", "data.py:load", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "data.py:load"
    for writer in ("of a child", "of a descriptor", "of C", "of Python"):
        assert writer in done.stderr


def test_a_pillow_image_that_cannot_be_converted_is_refused(text: Text) -> None:
    picture = "Image.new('RGB', (6, 5))"
    own = text(f"p = {picture}\np.info['transparency'] = (4660, 1, 1)\nreturn [p] * 30, Y")
    with pytest.raises(DataError, match="a Pillow image has 16 bits a channel and a transparent colour"):
        files.read_raw(own)


def test_a_seed_of_its_own_is_enough(text: Text) -> None:
    own = text("torch.manual_seed(0)\nreturn X[torch.randperm(30)], Y")
    assert loading.digest(own) == loading.digest(own)


# ---- keys, plans, whose code


SPACE = """\
axes:
  model: [slp]
  dataset: ["../data.py:load"]
  technique: [weight]
  amount: [0.5]
train: {epochs: 1}
recover: none
"""


def test_a_plan_counts_the_file_and_what_it_returns(text: Text, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    body = "from pathlib import Path\nwith np.load(Path(__file__).parent / 'a.npz') as a:\n    return dict(a)"
    text(body)
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "own.yaml").write_text(SPACE)

    def plan() -> tuple[str, str]:
        dense = make_plan(load_space("spaces/own.yaml")).trials[0].config.dense
        assert dense.dense_code.startswith("../data.py=")
        assert dense.data_sha256 == loading.digest(dense.dataset)
        return dense.data_sha256, dense.key()

    data, key = plan()
    assert plan() == (data, key)
    text(f"{body}  # the same")
    assert plan()[0] == data
    assert plan()[1] != key  # another source, the same data
    text(body)
    np.savez(tmp_path / "a.npz", x=255 - X, y=Y)
    assert plan()[0] != data
    (tmp_path / "a.npz").unlink()
    done = orchestrate("plan", "--space", "spaces/own.yaml", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.startswith("error: ../data.py:load: FileNotFoundError: ")
    assert "@" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_without_a_pin_is_not_read_from_a_record(text: Text) -> None:
    text("return X, Y")
    with pytest.raises(DataError, match=r"data.py:load is written without the digest of its file"):
        find_source("data.py:load")
    with pytest.raises(DataError, match="with the digest 0123456789abcdef is not at hand"):
        datasets.info("data.py@0123456789abcdef:load")
    with pytest.raises(SpaceError, match=r"unknown option of data.py:load 'k'"):
        find_source(canonical_dataset("data.py:load") + "(k=1)")


def test_the_same_data_have_one_digest_wherever_the_file_lies(text: Text, tmp_path: Path) -> None:
    own = text("return X, Y")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "other.py").write_text((tmp_path / "data.py").read_text() + "# more\n")
    assert loading.digest(canonical_dataset("below/other.py:load")) == loading.digest(own)


def test_data_check_verify_and_list_know_it(text: Text, tmp_path: Path) -> None:
    text("return X, Y")
    done = orchestrate("data", "check", "data.py:load", "--sheet", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data.py:load: 30 images of 1x6x5")
    assert (tmp_path / "sheet.png").exists()
    assert orchestrate("data", "verify", "data.py:load", cwd=tmp_path).stdout == "data.py:load: ok\n"
    assert "path/to/file.py:function" in orchestrate("data", "list", cwd=tmp_path).stdout
    as_json = orchestrate("data", "check", "data.py:load", "--json", cwd=tmp_path).stdout
    assert '"name": "data.py:load"' in as_json


def test_a_worker_calls_it_once_and_compares_with_the_plan(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = text("return np.random.permutation(X), Y")
    monkeypatch.setattr(paths, "_workers_folder", tmp_path)
    calls: list[str] = []
    call = own_data.OwnData._call
    monkeypatch.setattr(own_data.OwnData, "_call", lambda self: calls.append(self.text) or call(self))
    first = loading.load_dataset(own)
    assert calls == [own]
    assert first.digest != loading.load_dataset(own).digest


# ---- several data sets of one function


def test_classes_of_the_test_set_are_those_of_its_own_list(text: Text) -> None:
    """As torchvision's ImageFolder numbers them: by the folders that it found."""
    train = "Pairs(X, classes=['ant', 'bee', 'cow'])"
    test = "Pairs(X[:8], np.arange(8) % 2, classes=['bee', 'cow'])"
    raw = files.read_raw(text(f"return {{'train': {train}, 'test': {test}}}"))
    assert raw.class_names == ("ant", "bee", "cow")
    assert raw.labels[30:].tolist() == [1, 2] * 4
    with pytest.raises(DataError, match="class 'elk' is in test alone, not in train"):
        files.read_raw(text(f"return {train}, Pairs(X[:8], np.arange(8) % 2, classes=['bee', 'elk'])"))


def test_pictures_of_pillow_in_a_list_are_read_as_those_of_files(text: Text) -> None:
    body = "pictures = [Image.fromarray(image).convert('P') for image in X]\n"
    raw = files.read_raw(text(f"{body}return pictures, Y"))
    assert raw.images.shape == (30, 3, 6, 5)
    assert np.array_equal(raw.images[:, 0], X)  # of a palette the colours, not its indices
    mixed = "[*pictures[:-1], pictures[-1].convert('L')]"
    with pytest.raises(DataError, match=r"image 29 of x is \[1, 6, 5\], and image 0 \[3, 6, 5\]"):
        files.read_raw(text(f"{body}return {mixed}, Y"))
