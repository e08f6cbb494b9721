"""Keys and params of models whose options depend on the images, and of models of libraries."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from models import timm_models
from orchestrator.config import DEFAULT_MICRO_BATCH, micro_batch_of
from orchestrator.errors import SpaceError
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.params import _defaults, params, without_defaults

FILE = """axes:
  model: [{model}]
  dataset: [{dataset}]
  technique: [weight]
  amount: [50%]
"""


def planned(tmp_path: Path, model: str, dataset: str = "digits") -> Plan:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.format(model=f'"{model}"', dataset=dataset))
    return make_plan(load_space(str(file)))


def test_the_stem_of_a_run_is_in_its_key_and_its_params(tmp_path: Path) -> None:
    auto, small, imagenet = (
        planned(tmp_path, f"torchvision.mobilenet_v3_small{options}").dense[0]
        for options in ("", "(stem='small')", "(stem='imagenet')")
    )
    assert auto.model == "torchvision.mobilenet_v3_small(weights=None, stem='small')"
    assert auto.key() == small.key() != imagenet.key()
    values = params(auto)
    assert (values["model"], values["model.stem"]) == (
        "torchvision.mobilenet_v3_small(stem='small')",
        "small",
    )
    assert auto.dense_code == f"torchvision=={version('torchvision')}"


def test_two_spellings_of_one_network_are_planned_once(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, "torchvision.mobilenet_v3_small\", \"torchvision.mobilenet_v3_small(stem='small')"
    )
    assert (len(plan.dense), len(plan.trials)) == (1, 1)
    assert [exclusion.count for exclusion in plan.excluded] == [1]


def test_an_image_size_that_no_network_takes_is_an_error_with_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="vgg11 cannot take images of 8x8: it takes images from 32x32 up"):
        planned(tmp_path, "torchvision.vgg11")


def test_an_unknown_model_is_an_error_with_the_nearest_and_the_place_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        SpaceError, match=r"mine.yaml:2: axes.model\[0\]: .* did you mean torchvision.resnet18"
    ):
        planned(tmp_path, "torchvision.resnt18")
    with pytest.raises(SpaceError, match=r"did you mean resnet.*your own: path/to/file.py:function"):
        planned(tmp_path, "resnt")


def test_the_images_of_a_pass_by_the_name_of_the_model_or_its_library() -> None:
    names = ("resnet(depth=20)", "torchvision.resnet18(stem='small')", "timm.resnet18", "vgg")
    assert [micro_batch_of(name) for name in names] == [512, 64, 64, DEFAULT_MICRO_BATCH]


def test_a_recorded_model_of_a_library_that_is_not_here_is_shown_with_all_of_its_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_models.names.cache_clear()
    assert without_defaults("model", "timm.resnet26t(pretrained=False)") == "timm.resnet26t(pretrained=False)"
    timm_models.names.cache_clear()
    _defaults.cache_clear()
