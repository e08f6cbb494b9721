"""`train:` of a space: fields, named recipes, canonical texts, and keys that stay as they were."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.errors import SpaceError
from orchestrator.keys import non_default_recipe
from orchestrator.planning.changes import config_differences
from orchestrator.planning.expansion import expand
from orchestrator.planning.fingerprints import dense_code, package_version
from orchestrator.space.catalog import describe
from orchestrator.space.recipe import RECIPES
from orchestrator.space.space import Space, grid_lists, json_schema, load_space

AXES = "axes: {model: slp, dataset: digits, amount: 0.5}\n"


def space(tmp_path: Path, text: str, *sets: str, axes: str = AXES) -> Space:
    file = tmp_path / "mine.yaml"
    file.write_text(axes + text)
    return load_space(str(file), sets)


def recipe(loaded: Space) -> Train:
    return Train(**loaded.train.model_dump())


def test_a_name_stands_for_the_whole_recipe(tmp_path: Path) -> None:
    named = RECIPES["resnet_cifar"]
    for text in ("train: resnet_cifar", "train: {recipe: resnet_cifar}"):
        loaded = space(tmp_path, text)
        assert recipe(loaded) == named.train
        assert loaded.axes.batch_size == (128,)


def test_fields_beside_the_name_win(tmp_path: Path) -> None:
    loaded = space(tmp_path, "train: {recipe: resnet_cifar, epochs: 20, nesterov: true}")
    assert recipe(loaded) == replace(RECIPES["resnet_cifar"].train, epochs=20, nesterov=True)
    back = space(tmp_path, "train: {recipe: resnet_cifar, optimizer: adam, weight_decay: 0}")
    assert (back.train.optimizer, back.train.weight_decay) == ("adam", 0.0)


def test_a_batch_size_of_the_space_wins(tmp_path: Path) -> None:
    axes = AXES.replace("amount", "batch_size: [16, 32], amount")
    assert space(tmp_path, "train: resnet_cifar", axes=axes).axes.batch_size == (16, 32)
    assert space(tmp_path, "train: resnet_cifar", "batch_size=64").axes.batch_size == (64,)
    assert space(tmp_path, "train: {epochs: 3}").axes.batch_size == (64,)


def test_the_command_line_names_a_recipe_in_place_of_the_files(tmp_path: Path) -> None:
    loaded = space(tmp_path, "train: {epochs: 3, lr: 7}", "train.recipe=resnet_cifar")
    assert recipe(loaded) == RECIPES["resnet_cifar"].train
    assert loaded.axes.batch_size == (128,)
    for sets in (
        ("train.epochs=4", "train.recipe=resnet_cifar"),
        ("train.recipe=resnet_cifar", "train.epochs=4"),
    ):
        loaded = space(tmp_path, "train: {epochs: 3, lr: 7}", *sets)
        assert recipe(loaded) == replace(RECIPES["resnet_cifar"].train, epochs=4)


def test_the_command_line_changes_a_field_of_a_named_recipe(tmp_path: Path) -> None:
    loaded = space(tmp_path, "train: resnet_cifar", "train.epochs=4")
    assert recipe(loaded) == replace(RECIPES["resnet_cifar"].train, epochs=4)
    several = space(tmp_path, "train: resnet_cifar", "train.lr=0.1,0.2")
    assert several.axes.train_lr == (0.1, 0.2)
    assert recipe(several) == RECIPES["resnet_cifar"].train


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            "train: resnet_cifer",
            (),
            "mine.yaml:2: train.recipe: unknown recipe 'resnet_cifer'; did you mean",
        ),
        ("train: {recipe: vgg}", (), "unknown recipe 'vgg'; known: cutout_cifar10, resnet_cifar, wide"),
        ("train: {recipe: 3}", (), "train.recipe is 3"),
        ("train: {recipes: resnet_cifar}", (), "did you mean recipe?"),
        ("train: 5", (), "train is 5"),
        ("", ("train.recipe=resnet_cifar,wide_resnet_cifar",), "train.recipe takes one value"),
        ("", ("train.recipe=resnet_cifr",), "--set train.recipe=resnet_cifr: train.recipe: unknown recipe"),
        ("train: {schedule: stepp}", (), "unknown lr_schedule 'stepp'; did you mean step?"),
        ("train: {schedule: step(milestones=0.5)}", (), "write that part of the dense training as '50%'"),
        ("train: {augment: flip + cutot}", (), "unknown augmentation 'cutot'; did you mean cutout?"),
        ("train: {augment: [flip]}", (), "is no augmentation"),
        ("train: {mixup: -1}", (), "train.mixup is -1"),
        ("train: {label_smoothing: 1}", (), "train.label_smoothing is 1"),
        ("train: {ema: 1.0}", (), "train.ema is 1.0"),
    ],
)
def test_what_is_none_is_one_line(tmp_path: Path, text: str, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space(tmp_path, text, *sets)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "text", "canonical"),
    [
        ("schedule", "step", "step"),
        ("schedule", "step(factor=0.1)", "step"),
        ("schedule", "step(milestones=['50%', '75%'])", "step"),
        ("schedule", "step(milestones=3, factor=0.5)", "step(milestones=[3], factor=0.5)"),
        (
            "schedule",
            {"method": "step", "milestones": ["25.0%", 4.0]},
            "step(milestones=['25%', 4], factor=0.1)",
        ),
        ("schedule", "cosine", "cosine"),
        ("schedule", "one_cycle", "one_cycle(warmup=0.3, start=25.0, end=10000.0)"),
        ("augment", "crop_flip", "crop_flip"),
        ("augment", "crop_flip+cutout( size=4 )", "crop_flip + cutout(size=4)"),
        ("augment", {"method": "cutout", "size": 4}, "cutout(size=4)"),
        ("augment", "randaugment", "randaugment(operations=2, magnitude=9)"),
    ],
)
def test_equal_values_get_one_text(tmp_path: Path, field: str, text: object, canonical: str) -> None:
    loaded = space(tmp_path, yaml.safe_dump({"train": {field: text}}))
    assert getattr(loaded.train, field) == canonical
    again = space(tmp_path, yaml.safe_dump({"train": {field: canonical}}))
    assert getattr(again.train, field) == canonical


def test_what_is_new_may_be_an_axis(tmp_path: Path) -> None:
    axes = AXES.replace(
        "amount",
        'train.augment: [flip, "flip + cutout(size=2)"], train.ema: [0, 0.9], train.mixup: 0.2, amount',
    )
    loaded = space(tmp_path, "", 'train.schedule=step,"step(milestones=[2, 3])"', axes=axes)
    trains = {trial.config.dense.train for trial in expand(loaded, grid_lists(loaded), Numerics()).trials}
    assert len(trains) == 8
    assert {train.mixup for train in trains} == {0.2}
    assert {train.schedule for train in trains} == {"step", "step(milestones=[2, 3], factor=0.1)"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train: {epochs: 3, schedule: 'step(milestones=[3])'}",
            "milestone 3 of schedule step is not before",
        ),
        ("train: {schedule: one_cycle, warmup_epochs: 1}", "warmup_epochs must be 0"),
        ("train: {augment: cutout(size=9)}", "cutout(size=9) is larger than images of 8x8; give 1 to 8"),
    ],
)
def test_a_recipe_that_cannot_run_is_excluded_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    loaded = space(tmp_path, text)
    expansion = expand(loaded, grid_lists(loaded), Numerics())
    assert not expansion.trials
    assert any(reason in exclusion.reason for exclusion in expansion.excluded)


def test_a_named_recipe_has_the_key_of_its_fields(tmp_path: Path) -> None:
    fields = non_default_recipe(asdict(RECIPES["resnet_cifar"].train))
    named, written = (
        space(tmp_path, "train: resnet_cifar"),
        space(tmp_path, yaml.safe_dump({"train": fields})),
    )
    dense = DenseConfig("slp", "digits", 128, 0, recipe(named), Numerics())
    assert dense.key() == replace(dense, train=recipe(written)).key()


def test_new_fields_leave_old_keys_alone() -> None:
    """Keys of recipes from before these fields were there, computed then."""
    old = DenseConfig("mlp", "digits", 64, 0, Train(schedule="step", augment="crop_flip"), Numerics())
    assert not {"label_smoothing", "mixup", "ema"} & non_default_recipe(asdict(old.train)).keys()
    assert old.key() == OLD_KEY
    for change in ({"label_smoothing": 0.1}, {"mixup": 0.2}, {"ema": 0.9}):
        assert replace(old, train=replace(old.train, **change)).key() != OLD_KEY


OLD_KEY = "e98e5f85fb093f57294a9f07d6ba6f45833c2ab93bbfb4e7549c8cd8f43b4db8"


def test_a_library_that_augments_is_in_the_key() -> None:
    assert dense_code("slp", "digits", "crop_flip + cutout(size=2)", "one_cycle") == ""
    code = f"torchvision=={package_version('torchvision')}"
    assert dense_code("slp", "digits", "flip + randaugment(operations=1)") == code


def test_the_revision_of_an_augmentation_is_in_the_key_of_its_trainings_alone() -> None:
    """Results of resized_crop changed when it began to read bytes."""
    assert dense_code("slp", "digits", "resized_crop(scale=0.5) + flip") == "resized_crop==2"
    old = DenseConfig("slp", "digits", 64, 0, Train(augment="resized_crop"), Numerics())
    new = replace(old, dense_code=dense_code("slp", "digits", "resized_crop"))
    assert old.key() != new.key()
    assert config_differences(old, new) == ["resized_crop unknown is now 2"]


def test_show_prints_a_recipe_as_a_space_file_has_it() -> None:
    lines = describe("wide_resnet_cifar").splitlines()
    assert lines[0].startswith("train.recipe wide_resnet_cifar: ")
    shown = yaml.safe_load(
        "\n".join(line for line in lines[1:] if not line.startswith(("  paper", "  in a")))
    )
    assert Train(**shown["train"]) == RECIPES["wide_resnet_cifar"].train
    assert shown["axes"] == {"batch_size": [128]}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_in_its_canonical_form(tmp_path: Path, name: str) -> None:
    loaded = space(tmp_path, yaml.safe_dump({"train": non_default_recipe(asdict(RECIPES[name].train))}))
    assert recipe(loaded) == RECIPES[name].train
    images = AXES.replace("digits", "cifar10")
    loaded = space(tmp_path, f"train: {name}", axes=images)
    assert len(expand(loaded, grid_lists(loaded), Numerics()).trials) == 1


def test_the_json_schema_has_names_and_fields() -> None:
    schema = json_schema()
    by_name, by_fields = schema["properties"]["train"]["anyOf"]
    assert by_name["enum"] == list(RECIPES)
    fields = schema["$defs"]["Recipe"]["properties"]
    assert {"recipe", "ema", "mixup", "label_smoothing"} <= set(fields)
    assert by_fields["$ref"] == "#/$defs/Recipe"
