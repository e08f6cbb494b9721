"""Networks that people bring, from the plan to the record: one network's numbers, or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from adversarial import Graph, conv, pooled
from torch import nn
from trained import Empty

import models
import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.summary import Preview
from orchestrator.execution.sweep import preview
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.metrics import profile
from orchestrator.trial.run import TrialResult, run_trial
from pruning.cutting.layer_widths import layer_widths, resize
from pruning.masking import prunable_layers

SPACE = """\
version: 1
axes:
  model: [{model}]
  dataset: [digits]
  technique: [{technique}]
  amount: [50%]
train: {{epochs: 1}}
"""


def split_at_four(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out(pooled((s.b(s.a(x).relu()[:, :4]) + s.c(s.a(x).relu()[:, 4:])).relu())),
        a=conv(input_shape[0], 8), b=conv(4, 6), c=conv(4, 6), out=nn.Linear(6, num_classes),
    )  # fmt: skip


def mixed(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.a(x.flatten(1)).softmax(1)), a=nn.Linear(64, 8), out=nn.Linear(8, num_classes)
    )


def added_to_the_image(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out(pooled(s.b(s.a(x).relu() + x).relu())),
        a=conv(1, 8), b=conv(8, 6), out=nn.Linear(6, num_classes),
    )  # fmt: skip


def with_other_layers(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.a(s.att(*[s.line(x.flatten(2)).mT] * 3)[0].mean(1)).relu()),
        out=nn.Linear(6, num_classes), a=nn.Linear(8, 6), line=nn.Conv1d(1, 8, 1),
        att=nn.MultiheadAttention(8, 2, batch_first=True),
    )  # fmt: skip


def head_first(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.b(s.a(x.flatten(1)).relu()).relu()),
        out=nn.Linear(6, num_classes), a=nn.Linear(64, 8), b=nn.Linear(8, 6),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for builder in (split_at_four, mixed, added_to_the_image, with_other_layers, head_first):
        monkeypatch.setitem(models.BUILDERS, builder.__name__, builder)


def planned(tmp_path: Path, model: str, technique: str) -> Plan:
    (tmp_path / "own.yaml").write_text(SPACE.format(model=model, technique=technique))
    return make_plan(load_space(str(tmp_path / "own.yaml")))


def walked(model: str, granularity: str) -> TrialResult:
    numerics = Numerics(micro_batch=256)
    dense = DenseConfig(model, "digits", 64, 0, Train(epochs=1), numerics)
    prune = Prune("l2", granularity, "layer", "one_shot", 0.5)
    return run_trial(TrialConfig(dense, prune, "none", "x"), loading.load_dataset("digits"), store=Empty())


def test_a_plan_leaves_out_channels_that_cannot_be_cut_exactly_and_names_the_layer(tmp_path: Path) -> None:
    plan = planned(tmp_path, "mixed", "weight, structured")
    assert [trial.config.technique for trial in plan.trials] == ["weight"]
    (excluded,) = plan.excluded
    assert excluded.count == 1
    assert excluded.reason.startswith("channel of mixed: a: its units are mixed")


def test_a_trial_of_channels_that_cannot_be_cut_exactly_is_an_error() -> None:
    with pytest.raises(ValueError, match="a: its units are mixed"):
        walked("mixed", "channel")


def test_a_layer_that_is_left_whole_is_named_and_the_others_are_cut(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SPACE.format(model="split_at_four", technique="structured"))
    space = load_space(str(tmp_path / "own.yaml"))
    seen = preview(space, SweepOptions(), uri=f"sqlite:///{tmp_path}/none.db")
    (name,) = seen.to_json()["not_pruned"]["split_at_four"]
    assert name.startswith("a (left whole: b: what it reads in the network that is cut out")
    result = walked("split_at_four", "channel")
    assert result.last.cut
    widths = {name: layer.weight.shape[0] for name, layer in prunable_layers(result.last.net).items()}
    assert widths == {"out": 10, "a": 8, "b": 3, "c": 3}


def test_a_neuron_trial_that_cannot_be_cut_has_dense_physical_numbers_and_a_note() -> None:
    """The image is added to the dead channels: the layer behind reads it there."""
    result = walked("added_to_the_image", "unit")
    measurement = result.last.measurement
    assert not result.last.cut
    assert measurement.amount == 0.5
    assert measurement.macs_physical == measurement.macs_dense
    assert measurement.parameters_physical == measurement.parameters_dense
    (note,) = [note for note in result.last.notes if "not cut out" in note]
    assert note.startswith("round 1: not cut out")
    assert "b: it reads non-zero values from pruned channels" in note


def test_a_channel_trial_of_the_same_network_is_cut_and_counted() -> None:
    """8 to 4 and 6 to 3 filters: 4 * 9 * 64 + 3 * 4 * 9 * 64 + 3 * 10 multiply-adds are left."""
    result = walked("added_to_the_image", "channel")
    assert result.last.cut
    assert result.last.measurement.macs_physical == 4 * 9 * 64 + 3 * 4 * 9 * 64 + 3 * 10
    assert profile(result.last.net, (1, 8, 8)).total_macs == result.last.measurement.macs_physical


def test_classes_stay_and_units_go_wherever_the_head_is_registered() -> None:
    masks = walked("head_first", "unit").last.state.masks
    assert sorted(masks) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert [int(masks[f"{name}.bias"].sum()) for name in "ab"] == [4, 3]


def test_layers_that_are_never_pruned_are_named_in_the_plan(tmp_path: Path) -> None:
    text = SPACE.format(model="with_other_layers", technique="weight, neuron")
    (tmp_path / "own.yaml").write_text(text)
    space = load_space(str(tmp_path / "own.yaml"))
    told: Preview = preview(space, SweepOptions(), uri=f"sqlite:///{tmp_path}/none.db")
    names = ["att (MultiheadAttention)", "att.out_proj (never called as a layer)"]
    assert sorted(told.to_json()["not_pruned"]["with_other_layers"]) == names
    assert any(line.startswith("not pruned") and names[0] in line for line in told.lines())


def test_layers_that_are_never_pruned_are_named_in_a_warning() -> None:
    net = with_other_layers((1, 8, 8), 5)
    with pytest.warns(UserWarning, match=r"not pruned: att \(MultiheadAttention\)"):
        pruning.prune(net, amount=0.5)


def attention(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Graph(
        lambda s, x: s.out((s.att(*[s.a(x[:, 0])] * 3, need_weights=False)[0] + s.a(x[:, 0])).mean(1)),
        a=nn.Linear(8, 12), att=nn.MultiheadAttention(12, 4, batch_first=True),
        out=nn.Linear(12, num_classes),
    )  # fmt: skip


def test_half_of_the_heads_are_cut_out_counted_and_reloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.BUILDERS, "attention", attention)
    result = walked("attention", "head")
    assert result.last.cut
    assert result.last.measurement.amount == 0.5
    attention_left = result.last.net.get_submodule("att")
    assert attention_left.num_heads == 2
    assert attention_left.in_proj_weight.shape == (3 * 6, 12)
    assert attention_left.out_proj.weight.shape == (12, 6)
    rebuilt = resize(attention((1, 8, 8), 10), layer_widths(result.last.net))
    rebuilt.load_state_dict(result.last.net.state_dict())


def test_a_network_without_heads_is_refused_for_heads() -> None:
    with pytest.raises(ValueError, match="no attention whose heads can be removed"):
        walked("head_first", "head")
