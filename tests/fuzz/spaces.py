"""Space files, edited and made up, and the words of --set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from orchestrator.formatting import first_control
from orchestrator.planning.constraints import model_conflict
from orchestrator.space import yaml_loader
from orchestrator.space.space import FILE_KEYS, SPACES, load_space

from .edits import INTERESTING, NUMBERS, WORDS, edited, values

NAMED = [file.read_bytes() for file in sorted(SPACES.glob("*.yaml"))]
SNIPPETS = [
    "&a [*a]",
    "!!python/object:os.system x",
    "!!set {a}",
    "<<: {a: 1}",
    '"\\e]0;x\\a"',
    '"\\ud800"',
    "0x" + "f" * 900,
    "1:1:1:1:1",
    ".inf",
    "1e999",
    "2001-01-01",
    "{low: 1, high: 1e400}",
    "{low: 0, high: 9, step: 1e-320}",
    "0..999999999999999999",
    "-----1",
    "? [a]\n: b",
    "|\n    a\n    b",
    "*x",
    "&x 1",
    "{method: mlp, widths: [1, 2]}",
    "mlp(widths=" + "[" * 400,
    "mlp(widths=" + "-" * 900 + "1)",
    "mlp(widths=[1000000000])",
    "mlp(widths=[" + "9" * 900 + "])",
    "mlp(widths=[" + "1," * 480 + "])",
    'mlp(widths="\\x1b[31m")',
    "cnn(widths=[1000000])",
    "digits(classes=[0, 1], samples_per_class=8)",
    "pq_index(p=0.5, q=1, gamma=1e400)",
    "finetune(epochs=99999999999999999999999)",
    "25%",
    "-0.0",
    "9" * 5000,
    "90",
    "final/val_accuracy: max",
]
KEYS = [
    "model",
    "dataset",
    "amount",
    "seed",
    "technique",
    "criterion",
    "schedule",
    "recover",
    "train.lr",
    "batch_size",
]
KEYS += [
    "pq_index.gamma",
    "protect",
    "search.trials",
    "search.method",
    "train.epochs",
    "start",
    "granularity",
    "when",
]


def _snippets() -> st.SearchStrategy[str]:
    numbers = st.sampled_from(NUMBERS).map(str)
    return st.one_of(st.sampled_from(SNIPPETS), numbers, st.sampled_from(WORDS), st.text(max_size=12))


@st.composite
def made_up(draw: st.DrawFn) -> bytes:
    """Keys of a space file over whatever else."""
    lines = ["version: 1"] if draw(st.booleans()) else []
    for key in draw(st.lists(st.sampled_from([*FILE_KEYS, "axes", "axes"]), max_size=4)):
        inner = draw(st.lists(st.tuples(st.sampled_from(KEYS), _snippets()), max_size=5))
        if key in ("axes", "train", "search") and draw(st.integers(0, 9)):
            lines += [f"{key}:", *(f"  {name}: {text}" for name, text in inner)]
        else:
            lines.append(f"{key}: {draw(_snippets())}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def dumped(draw: st.DrawFn) -> bytes:
    """A space of the right form, with values of any kind in one or two of its places."""
    content: dict[str, Any] = {
        "axes": {"model": ["mlp(widths=[4])"], "dataset": ["digits"], "amount": [0.5], "seed": [0]},
        "train": {"epochs": 1},
    }
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([content, content["axes"], content["train"]]))
        known = list(FILE_KEYS) if place is content else KEYS
        place[draw(st.sampled_from(known))] = draw(values())
        if not isinstance(content.get("axes"), dict) or not isinstance(content.get("train"), dict):
            break
    import yaml

    return yaml.safe_dump(content, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


def space_files() -> st.SearchStrategy[bytes]:
    return st.one_of(edited(NAMED), made_up(), dumped(), st.sampled_from(INTERESTING), st.binary(max_size=40))


def read_space(folder: Path, data: bytes) -> None:
    path = folder / "crafted.yaml"
    path.write_bytes(data)
    space = load_space(str(path))
    assert first_control(space.about.rstrip("\n"), allowed="\n\t") is None
    assert space.points <= 1_000_000
    for model in space.axes.model[:3]:
        model_conflict(model, "digits")


def settings() -> st.SearchStrategy[list[str]]:
    words = st.one_of(
        _snippets(), st.sampled_from(INTERESTING).map(lambda data: data.decode("utf-8", "surrogateescape"))
    )
    text = st.lists(words, min_size=1, max_size=3).map(",".join)
    good = st.sampled_from(
        ["seed=0..3", "train.lr=1e-3,0.1", "amount=25%", "model=mlp(widths=[4])", "protect="]
    )
    pair = good | st.tuples(st.sampled_from(KEYS) | st.text(max_size=6), text).map("=".join)
    return st.lists(pair | st.text(max_size=9), min_size=1, max_size=3)


def read_settings(folder: Path, sets: list[str]) -> None:
    space = load_space("weight-vs-unit", sets)
    for model in space.axes.model[:3]:
        model_conflict(model, "digits")


def read_yaml(folder: Path, data: bytes) -> None:
    yaml_loader.load_yaml(data.decode("utf-8", "replace"), "crafted")
