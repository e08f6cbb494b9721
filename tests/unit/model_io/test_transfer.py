"""--from MODEL: what may be given, what is refused, how it is kept and found again; runs from an ancestor."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import Store
from safetensors.torch import save_file
from torch import Tensor

import models
import orchestrator
from models.densenet import current_name
from models.torchvision_compat import models as torchvision_models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import OrchestrateError, SpaceError, StoreError, StoreUnavailableError, UsageError
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep_artifacts import reproduce_command
from orchestrator.execution.worker import run_task
from orchestrator.model_io import rerun
from orchestrator.model_io.pretrained import load_source_model, transfer_messages, with_source_model
from orchestrator.model_io.state_dict_files import infer_architecture, read_state_dict
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.resume import identity, remaining_tasks
from orchestrator.space.space import Space, load_space
from orchestrator.system import provenance
from orchestrator.tracking import RunRecord, Tracker, source_models
from orchestrator.trial.task import Task, WorkerSettings, dump_tasks, load_tasks

OTHERS = "dataset=digits(classes=[0, 1], samples_per_class=8)"
SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[24, 16])"]
  dataset: ["digits(classes=[0, 1], samples_per_class=8)"]
  start: [scratch, weights, masked]
  amount: [50%, 80%]
train: {epochs: 2}
recover: finetune(epochs=1)
"""


def space_in(folder: Path, *sets: str, text: str = SPACE) -> Space:
    (folder / "moved.yaml").write_text(text)
    return load_space(str(folder / "moved.yaml"), sets)


def refused(
    kind: type[OrchestrateError], match: str, space: Space, source: str | Path, uri: str = ""
) -> None:
    with pytest.raises(kind, match=match) as caught:
        make_plan(with_source_model(space, str(source), uri=uri))
    assert "\n" not in str(caught.value)


# The plan


def test_a_start_other_than_scratch_needs_an_ancestor(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="start weights needs a network to start from: give --from MODEL"):
        make_plan(space_in(tmp_path))
    with pytest.raises(SpaceError, match="unknown start 'mask'; did you mean masked"):
        space_in(tmp_path, "start=mask")


def test_trials_from_scratch_have_the_keys_that_they_have_without_an_ancestor(
    store: Store, tmp_path: Path
) -> None:
    alone = make_plan(space_in(tmp_path, "start=scratch"))
    unsaid = make_plan(space_in(tmp_path, text=SPACE.replace("  start: [scratch, weights, masked]\n", "")))
    moved = make_plan(with_source_model(space_in(tmp_path), store.trial("mlp"), uri=store.uri))
    by_start: dict[str, list[str]] = {}
    for trial in moved.trials:
        by_start.setdefault(trial.config.dense.start, []).append(trial.key)
    assert by_start["scratch"] == [trial.key for trial in alone.trials] == [t.key for t in unsaid.trials]
    assert identity(alone) == identity(unsaid)
    assert {len(keys) for keys in by_start.values()} == {2}
    assert len({trial.key for trial in moved.trials}) == 6
    assert [config.start for config in moved.dense] == ["scratch", "weights", "masked"]  # one each, shared
    assert moved.dense[0].ancestor_sha256 == ""


def test_a_space_that_says_nothing_of_it_starts_from_the_weights(store: Store, tmp_path: Path) -> None:
    space = space_in(tmp_path, text=SPACE.replace("  start: [scratch, weights, masked]\n", ""))
    found = make_plan(with_source_model(space, store.dense("mlp"), uri=store.uri))
    assert {trial.config.dense.start for trial in found.trials} == {"weights"}
    refused(UsageError, "every start of moved is scratch", space_in(tmp_path, "start=scratch"), "x")


def test_the_ancestors_model_takes_the_place_of_the_spaces(store: Store, tmp_path: Path) -> None:
    before = space_in(tmp_path, "model=slp,mlp(widths=[3])")
    space = with_source_model(before, store.trial("cnn"), uri=store.uri)
    assert space.axes.model == ("cnn(widths=[8, 16])",)
    lines = list(transfer_messages(before, space))
    assert lines[0].endswith("takes the place of the space's: cnn(widths=[8, 16])")
    assert ": 12 of 14 tensors of " in lines[1]
    assert lines[1].endswith(
        "; drawn anew: output.weight (head: 10 classes to 2), output.bias (head: 10 classes to 2)"
    )
    assert len(lines) == 2


def test_masks_that_mask_nothing_are_no_other_start(store: Store, tmp_path: Path) -> None:
    found = make_plan(with_source_model(space_in(tmp_path), store.dense("mlp"), uri=store.uri))
    assert {config.start for config in found.dense} == {"scratch", "weights"}
    assert [item.count for item in found.excluded] == [2]
    assert "nothing of the source model is pruned; start weights is the same" in found.excluded[0].reason


def test_a_network_of_which_nothing_would_be_left_is_no_start(store: Store, tmp_path: Path) -> None:
    found = make_plan(with_source_model(space_in(tmp_path), store.dense("slp"), uri=store.uri))
    assert {config.start for config in found.dense} == {"scratch"}
    assert any("all would be re-initialised" in item.reason for item in found.excluded)


def test_data_sets_that_inherit_alike_are_told_together(store: Store, tmp_path: Path) -> None:
    before = space_in(tmp_path, "dataset=digits(classes=[0,1]),digits(classes=[3,4]),digits")
    lines = list(transfer_messages(before, with_source_model(before, store.dense("mlp"), uri=store.uri)))
    assert [line.partition(" of ")[0] for line in lines] == ["2 data sets: 2", "digits: 3"]


def test_masks_that_stay_cannot_be_dealt_out_anew(store: Store, tmp_path: Path) -> None:
    space = space_in(tmp_path, "control=shuffle", "technique=weight", "recover=none")
    found = make_plan(with_source_model(space, store.trial("mlp", "weight"), uri=store.uri))
    assert {config.start for config in found.dense} == {"scratch", "weights"}
    assert "start masked, whose masks stay" in found.excluded[0].reason


def test_masks_that_stay_cannot_be_regrown(store: Store, tmp_path: Path) -> None:
    space = space_in(tmp_path, "when=init", "technique=weight", "recover=rigl")
    found = make_plan(with_source_model(space, store.trial("mlp", "weight"), uri=store.uri))
    assert {config.start for config in found.dense} == {"scratch", "weights"}
    assert "recover rigl brings weights back: start masked, whose masks stay" in found.excluded[0].reason


def test_the_ancestor_is_part_of_what_a_sweep_and_its_runs_are_known_by(store: Store, tmp_path: Path) -> None:
    one = make_plan(with_source_model(space_in(tmp_path), store.trial("mlp"), uri=store.uri))
    other = make_plan(with_source_model(space_in(tmp_path), store.trial("mlp", "weight"), uri=store.uri))
    assert identity(one) != identity(other)
    assert {trial.key for trial in one.trials} & {trial.key for trial in other.trials} == {
        trial.key for trial in one.trials if trial.config.dense.start == "scratch"
    }
    search = ("search.method=tpe", "search.trials=2", "search.objectives={final/val_accuracy: max}")
    drawn = [
        make_plan(with_source_model(space_in(tmp_path, *search), store.trial(f), uri=store.uri))
        for f in ("mlp", "cnn")
    ]
    assert identity(drawn[0]) != identity(drawn[1])


def test_the_command_that_repeats_a_sweep_names_the_ancestor(store: Store, tmp_path: Path) -> None:
    run = store.trial("mlp")
    assert f"--from {run}" in reproduce_command(
        with_source_model(space_in(tmp_path), run, uri=store.uri), SweepOptions()
    )


# What an ancestor is, whatever it is called


def test_one_network_has_one_hash_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    run, space = store.trial("cnn"), space_in(tmp_path)
    known = load_source_model(space, run, uri=store.uri)
    assert load_source_model(space, f"runs:/{run}", uri=store.uri).sha256 == known.sha256
    # A folder does not say which classes its outputs are of: it is another ancestor, with the same tensors.
    copy = shutil.copytree(store.model(run), tmp_path / "copy")
    folder = load_source_model(space, str(copy), uri=store.uri)
    assert (folder.classes, folder.name) == (None, "copy")
    assert known.classes == tuple(f"digits/{label}" for label in range(10))
    weights, masks = "weights.safetensors", "masks.safetensors"
    assert [folder.files[name] for name in (weights, masks)] == [
        known.files[name] for name in (weights, masks)
    ]


def test_a_trial_that_keeps_masks_alone_and_one_cut_out_are_taken_whole(store: Store, tmp_path: Path) -> None:
    run = store.trial("cnn", "channel", "none")
    found = load_source_model(space_in(tmp_path), run, uri=store.uri)
    whole, record = orchestrator.load(run, cut=False, uri=store.uri)
    assert found.pruned
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    again = read_back(found.files, tmp_path)
    assert all(torch.equal(again[0][name], value) for name, value in whole.state_dict().items())
    assert all(torch.equal(again[1][name], mask) for name, mask in record.masks.items())


def read_back(files: Mapping[str, bytes], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from orchestrator.storage import model_files

    place = folder / "again"
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    saved = model_files.load_model_from(model_files.LocalFolder(place), manifest_sha256=None)
    return saved.state().weights, saved.masks


def test_what_is_no_network_is_refused_in_a_line(store: Store, tmp_path: Path) -> None:
    space = space_in(tmp_path)
    refused(StoreError, "there is no such file", space, tmp_path / "net.pth", store.uri)
    refused(StoreError, "no run 'nothing', and no folder either", space, "nothing", store.uri)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    refused(StoreError, r"broken\.safetensors", space, tmp_path / "broken.safetensors", store.uri)
    net = models.build("mlp(widths=[24, 16])", input_shape=(1, 8, 8), num_classes=2)
    with torch.no_grad():
        net.get_parameter("hidden.0.weight")[0, 0] = float("nan")
    save_file(net.state_dict(), tmp_path / "nan.safetensors")
    refused(StoreError, "hidden.0.weight is not finite", space, tmp_path / "nan.safetensors", store.uri)


# Files from elsewhere


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploited",)


def test_a_pickle_that_would_run_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": OrderedDict(a=torch.ones(1)), "x": Exploit()}, "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Exploit()))
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(StoreError, match="refused: it holds more than tensors, or is damaged") as caught:
            read_state_dict(Path(name))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploited").exists()
    torch.load("evil.pth", weights_only=False)  # the trap is a real one
    assert (tmp_path / "exploited").exists()


def test_damaged_files_and_other_content_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "bare.pth")
    torch.save({"epoch": 3, "weights": [1, 2]}, tmp_path / "log.pth")
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    whole = (tmp_path / "log.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("bare", "log", "complex", "half", "noise", "empty"):
        with pytest.raises(StoreError, match=f"{name}.pth") as caught:
            read_state_dict(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nested", ["", "state_dict", "model"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_a_state_dict_is_read_plain_or_nested(tmp_path: Path, nested: str, kind: torch.dtype) -> None:
    net = models.build("cnn(widths=[4])", input_shape=(1, 8, 8), num_classes=3).to(kind)
    content = net.state_dict()
    torch.save({nested: content, "epoch": 3} if nested else content, tmp_path / "net.pth")
    found = infer_architecture(
        tmp_path / "net.pth", read_state_dict(tmp_path / "net.pth"), model="cnn(widths=[4])", image=(1, 8, 8)
    )
    weights, shape, classes = found
    assert (shape, classes) == ((1, 8, 8), 3)
    assert all(torch.equal(weights[name].to(kind), value) for name, value in net.state_dict().items())
    assert weights["blocks.0.conv.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "of", "found"),
    [
        ("mlp(widths=[4])", (1, 28, 28), (1, 1, 784)),
        ("mlp(widths=[4])", (1, 8, 8), (1, 8, 8)),
        ("cnn(widths=[4])", (3, 32, 32), (3, 8, 8)),
    ],
)
def test_a_file_tells_channels_inputs_and_classes(
    tmp_path: Path, model: str, of: tuple[int, int, int], found: tuple[int, int, int]
) -> None:
    net = models.build(model, input_shape=of, num_classes=7)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    path = tmp_path / "net.safetensors"
    assert infer_architecture(path, read_state_dict(path), model=model, image=(1, 8, 8))[1:] == (found, 7)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    net = models.build("mlp(widths=[5])", input_shape=(1, 8, 8), num_classes=2)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    path = tmp_path / "net.safetensors"
    for model, said in (
        ("mlp(widths=[4])", r"hidden.0.weight is \(5, 64\), and \(4, 64\) is needed"),
        ("mlp(widths=[5], bias=True)", "hidden.0.bias is missing"),
        ("cnn", "is missing"),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            infer_architecture(path, read_state_dict(path), model=model, image=(1, 8, 8))
        assert "\n" not in str(caught.value)
    refused(
        SpaceError,
        "does not say which model it is, and moved has 2",
        space_in(tmp_path, "model=slp,mlp"),
        path,
    )


def name_of_before(name: str) -> str:
    """As torchvision's densenet121-a639ec97.pth has it: norm1 -> norm.1, conv2 -> conv.2, in dense layers."""
    for word in ("norm1", "norm2", "conv1", "conv2"):
        if ".denselayer" in name:
            name = name.replace(f".{word}.", f".{word[:-1]}.{word[-1]}.")
    return name


def test_names_of_before_are_those_of_today() -> None:
    old = "features.denseblock1.denselayer12.norm.1.running_mean"
    assert current_name(old) == "features.denseblock1.denselayer12.norm1.running_mean"
    for same in ("features.norm0.weight", "classifier.bias", "blocks.0.conv.weight", "hidden.1.weight"):
        assert current_name(same) == same


@pytest.mark.slow
def test_torchvisions_densenet_gives_its_own_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision_models.densenet121(weights=None)
    theirs(torch.rand(2, 3, 64, 64))  # statistics that are no longer 0 and 1
    theirs.eval()
    # The published file is older than the counters of batch norms, and has names of before.
    old = OrderedDict(
        (name_of_before(n), t) for n, t in theirs.state_dict().items() if not n.endswith("tracked")
    )
    assert sum(n not in theirs.state_dict() for n in old) == 58 * (4 + 4 + 1 + 1)
    torch.save(old, tmp_path / "densenet121.pth")
    tensors = read_state_dict(tmp_path / "densenet121.pth")
    weights, shape, classes = infer_architecture(
        tmp_path / "densenet121.pth", tensors, model="densenet121", image=(3, 32, 32)
    )
    assert (shape, classes) == ((3, 224, 224), 1000)
    net = models.build("densenet121", input_shape=(3, 64, 64), num_classes=1000)
    net.load_state_dict(weights)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.eval()(images), theirs(images))
    space = space_in(tmp_path, "model=densenet121", "dataset=cifar10", "start=weights")
    found = with_source_model(space, str(tmp_path / "densenet121.pth"), uri="")
    (line,) = transfer_messages(space, found)
    assert "cifar10: 724 of 727 tensors of densenet121.pth; drawn anew: " in line
    assert "features.conv0.weight (stem: 64x3x7x7 to 64x3x3x3)" in line
    assert "classifier.weight (head: 1000 classes to 10)" in line


# Runs


class Moved:
    """A plan from an ancestor, its points run by workers' own code in the store of that."""

    def __init__(self, store: Store, folder: Path, source: str, *sets: str) -> None:
        self.plan: Plan = make_plan(with_source_model(space_in(folder, *sets), source, uri=store.uri))
        self.tracker = Tracker(store.uri, "moved")
        self.folder = folder
        assert self.plan.space.source_model is not None
        run = self.tracker.start("sweep", "moved", tags={})
        source_models.upload_source_model(
            self.tracker, self.tracker.get_run(run.run_id), self.plan.space.source_model
        )
        run.end("FINISHED")
        self.sweep = self.tracker.get_run(run.run_id)

    def run(self) -> list[RunRecord]:
        points, _ = remaining_tasks(self.plan, self.tracker, retry_failed=False)
        for point in points:
            run_task(point, self.settings())
        keys = [trial.key for trial in self.plan.trials] + [config.key() for config in self.plan.dense]
        return [self.tracker.find_all_finished(keys)[key] for key in keys]

    def settings(self) -> WorkerSettings:
        place = provenance.install_path()
        return WorkerSettings(
            self.tracker.uri, "moved", self.sweep.run_id, None, place, state_dir=str(self.folder)
        )


@pytest.fixture(scope="module")
def moved(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    return Moved(store, tmp_path_factory.mktemp("moved"), store.trial("mlp", "weight"))


@pytest.fixture(scope="module")
def rows(moved: Moved) -> list[RunRecord]:
    source_models._load_by_hash.cache_clear()
    return moved.run()


def test_every_run_says_where_it_comes_from(store: Store, moved: Moved, rows: list[RunRecord]) -> None:
    ancestor = moved.plan.space.source_model
    assert ancestor is not None
    assert len(rows) == 6 + 3
    for row in rows:
        if row.params.get("start") is None:
            assert not {"ancestor", "inherited", "replaced", "ancestor_sha256"} & {*row.tags, *row.params}
            continue
        assert row.params["ancestor_sha256"] == ancestor.sha256
        assert row.tags["ancestor"] == store.trial("mlp", "weight")
        assert row.tags["inherited"] == "2 of 3 tensors"
        assert row.tags["replaced"] == "output.weight (head: 10 classes to 2)"
    assert sum(row.params.get("start") == "masked" for row in rows) == 3


def test_what_was_gone_is_counted_and_an_amount_is_of_all_weights(rows: list[RunRecord]) -> None:
    hidden, head = 24 * 64 + 16 * 24, 2 * 16
    gone = (24 * 64 + 1) // 2 + 16 * 24 // 2  # half of each hidden layer
    found = {
        (row.params["start"], row.tags["kind"], float(row.params.get("amount", 0))): row.metrics[
            "final/sparsity"
        ]
        for row in rows
        if "start" in row.params
    }
    assert found["weights", "dense", 0] == 0
    assert found["masked", "dense", 0] == pytest.approx(gone / (hidden + head), abs=1e-12)
    # 50% is below what is gone: of the whole network nothing more has to leave but what the head adds.
    assert found["masked", "trial", 0.5] == pytest.approx(int(0.5 * (hidden + head) + 0.5) / (hidden + head))
    assert found["masked", "trial", 0.8] == pytest.approx(int(0.8 * (hidden + head) + 0.5) / (hidden + head))


def test_a_transferred_run_comes_out_again_with_the_same_bits(store: Store, rows: list[RunRecord]) -> None:
    for row in rows:
        if row.params.get("start") in ("weights", "masked") and row.params.get("amount") in (None, "0.8"):
            source_models._load_by_hash.cache_clear()
            recorded = rerun.find_recorded_run(row.run_id, uri=store.uri)
            assert list(recorded.reproducibility_warnings()) == []
            same = rerun.compare(recorded, rerun.rerun(recorded))
            assert same.differences == []


def test_a_loaded_network_of_theirs_has_the_recorded_accuracy(store: Store, rows: list[RunRecord]) -> None:
    for row in rows:
        orchestrator.load(row.run_id, uri=store.uri, strict=True)


def test_there_is_nothing_left_to_run_the_second_time(moved: Moved, rows: list[RunRecord]) -> None:
    assert remaining_tasks(moved.plan, moved.tracker, retry_failed=False) == ([], 6)


def config_of(sha256: str) -> DenseConfig:
    return DenseConfig("mlp(widths=[24, 16])", "digits", 64, 0, Train(), Numerics(), "masked", sha256)


def test_an_ancestor_is_found_by_its_hash_and_checked(store: Store, moved: Moved, tmp_path: Path) -> None:
    ancestor = moved.plan.space.source_model
    assert ancestor is not None
    source_models._load_by_hash.cache_clear()
    found = source_models.load_source_model(moved.tracker, config_of(ancestor.sha256))
    assert found is not None
    assert found is source_models.load_source_model(moved.tracker, config_of(ancestor.sha256))  # in memory
    assert found.classes == ancestor.classes
    assert source_models.load_source_model(moved.tracker, replace(config_of(""), start="scratch")) is None
    with pytest.raises(StoreError, match="no sweep of this store has it; a sweep with the same --from"):
        source_models.load_source_model(moved.tracker, config_of("b" * 64))
    with pytest.raises(StoreError, match="is no SHA-256 of a source model"):
        source_models.load_source_model(moved.tracker, config_of("' or tags.kind LIKE '%"))


def test_a_store_that_was_away_a_moment_ago_is_asked_for_an_ancestor_again(
    moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    ancestor = moved.plan.space.source_model
    assert ancestor is not None
    source_models._load_by_hash.cache_clear()
    with pytest.raises(StoreUnavailableError), moved.tracker.translating_errors():
        raise StoreUnavailableError("database is locked")
    with pytest.raises(StoreUnavailableError, match="database is locked"), moved.tracker.translating_errors():
        pytest.fail("nobody waits for a store again that is away")
    monkeypatch.setattr(source_models, "RETRY_SECONDS", 0.0)
    assert source_models.load_source_model(moved.tracker, config_of(ancestor.sha256)) is not None


def test_a_damaged_ancestor_is_no_ancestor_until_a_sweep_brings_it_again(
    store: Store, tmp_path: Path
) -> None:
    place = Moved(store, tmp_path, store.trial("mlp", "unit"), "start=masked", "amount=50%")
    ancestor = place.plan.space.source_model
    assert ancestor is not None
    folder = place.tracker.local_folder(place.sweep, source_models.FOLDER)
    assert folder is not None
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    point = remaining_tasks(place.plan, place.tracker, retry_failed=False)[0][0]
    source_models._load_by_hash.cache_clear()
    with pytest.raises(StoreError, match=r"weights\.safetensors is not as it was written"):
        run_task(point, place.settings())
    weights.write_bytes(b"")  # its size differs: that is seen without reading it
    source_models.upload_source_model(place.tracker, place.sweep, ancestor)
    run_task(point, place.settings())
    assert place.tracker.find_finished(point.key) is not None


def test_a_transferred_run_is_an_ancestor_as_well(
    store: Store, rows: list[RunRecord], tmp_path: Path
) -> None:
    run = next(row for row in rows if row.params.get("start") == "masked" and row.tags["kind"] == "trial")
    found = load_source_model(space_in(tmp_path), run.run_id, uri=store.uri)
    assert found.pruned
    assert found.classes == ("digits/0", "digits/1")


def test_a_trial_from_an_ancestor_travels_as_text() -> None:
    config = TrialConfig(
        config_of("a" * 64), Prune("magnitude()", "weight", "layer", "one_shot()", 0.5), "none", "x"
    )
    point = Task(config.key(), "a name", config, parent=config.dense.key())
    assert load_tasks(dump_tasks([point])) == (point,)
    assert json.loads(dump_tasks([point]))[0]["config"]["dense"]["start"] == "masked"
