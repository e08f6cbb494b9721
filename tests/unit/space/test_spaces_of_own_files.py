"""A space that names one's own files: canonical texts, keys, names, and what a mistake says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import method_name
from orchestrator.errors import SpaceError
from orchestrator.execution.cached_summary import request_of
from orchestrator.execution.options import SweepOptions
from orchestrator.planning.changes import config_differences
from orchestrator.planning.fingerprints import with_current_fingerprints
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.resume import plan_text
from orchestrator.planning.run_names import trial_name, varied_axes
from orchestrator.space.space import Space, load_space
from orchestrator.trial.params import params
from orchestrator.trial.task import Task, dump_tasks, load_tasks
from pruning.criteria import criteria
from pruning.schedules import schedules
from pruning.user_code import own_code, stored_code

NET = (
    "from torch import nn\n\n\ndef small(input_shape, num_classes, *, width=8):\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
    "\n\ndef rated(input_shape, num_classes, *, width=6, rate: float = 0):\n"
    "    return nn.Sequential(nn.Dropout(rate), small(input_shape, num_classes, width=width))\n"
    "\n\nclass Rated(nn.Sequential):\n"
    "    def __init__(self, input_shape, num_classes, *, rate=0.5):\n"
    "        super().__init__(rated(input_shape, num_classes, rate=rate))\n"
)
MINE = """\
from typing import Annotated

from pruning.criteria import criteria
from pruning.hyperparameters import Between
from pruning.schedules import count_to_prune


@criteria.register(summary="a power of |w|", absolute=True)
def score(context, *, alpha: Annotated[float, Between(1, 4)] = 2):
    return {name: weight.double().abs() ** alpha for name, weight in context.weights.items()}


def plain(context, alpha=2):
    return {name: weight.double().abs() ** alpha for name, weight in context.weights.items()}


def soft(context, alpha=1.0):
    return plain(context, alpha)


def maybe(context, *, alpha: float | None = None):
    return plain(context, alpha or 2)


def halves(pools, *, amount, round, rounds=2):
    return count_to_prune(pools, amount if round >= rounds else amount / 2)


def again(context, state, *, round):
    return state


def wrong(first, second):
    return {}
"""
SPACE = """\
axes:
  model: ["net.py:small(width=6)"]
  dataset: [digits]
  criterion: ["mine.py:score(alpha=3)"]
  granularity: [weight]
  scope: [global]
  schedule: ["mine.py:halves"]
  amount: [50%]
  recover: ["mine.py:again"]
train: {epochs: 1}
"""


def space_in(folder: Path, text: str = SPACE, *sets: str) -> Space:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"net.py": NET, "mine.py": MINE, "space.yaml": text}.items():
        if name == "space.yaml" or not (folder / name).exists():
            (folder / name).write_text(content)
    return load_space(str(folder / "space.yaml"), sets)


def plan_of(space: Space) -> Plan:
    return make_plan(space, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(space_in(tmp_path_factory.mktemp("space")))


def test_keys_have_the_digest_and_people_see_none(plan: Plan) -> None:
    (trial,) = plan.trials
    config = trial.config
    assert own_code.shown(config.dense.model) == "net.py:small(width=6)"
    assert own_code.shown(config.prune.criterion) == "mine.py:score(alpha=3.0)"
    codes = {code.main: code for code in stored_code.codes_in(str(plan.space.choices()))}
    assert config.dense.dense_code == f"net.py={codes['net.py'].sha256}"
    assert config.trial_code == f"mine.py={codes['mine.py'].sha256}"
    values = params(config)
    assert values["model"] == "net.py:small(width=6)"
    assert (values["model.width"], values["criterion.alpha"]) == ("6", "3.0")
    assert (values["schedule"], values["recover"]) == ("mine.py:halves", "mine.py:again")
    assert trial_name(config, varied_axes(plan.space)) == ("mine.py:score(alpha=3.0) 50% net.py:small seed 0")
    assert "@" not in plan_text(plan).replace(trial.key, "")
    assert method_name(config.dense.model) == "net.py:small"


def test_equal_content_in_another_folder_has_equal_keys(plan: Plan, tmp_path: Path) -> None:
    again = plan_of(space_in(tmp_path / "another" / "place"))
    assert [trial.key for trial in again.trials] == [trial.key for trial in plan.trials]


def test_a_changed_file_has_other_keys_and_says_so(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"{NET}# changed\n")
    changed = plan_of(space_in(tmp_path))
    assert changed.trials[0].key != plan.trials[0].key
    old, new = plan.trials[0].config, changed.trials[0].config
    assert config_differences(old, new) == ["source of net.py changed"]
    assert with_current_fingerprints(old) == old  # a pinned name is that code, whatever lies on the disk


def test_a_task_travels_with_its_code(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan.trials[0].config
    kept = stored_code.dump(stored_code.codes_in(str(plan.space.choices())))
    monkeypatch.setattr(own_code, "_CODES", {})
    stored_code.add_all(kept)
    (task,) = load_tasks(dump_tasks([Task(config.key(), "name", config, parent=config.dense.key())]))
    assert task.config == config
    assert len(stored_code.codes_in(dump_tasks([task]))) == 2


def test_the_decorator_s_traits_are_the_method_s_and_its_name_is_nobody_s(plan: Plan) -> None:
    method = criteria.get(plan.trials[0].config.prune.criterion)
    assert method.traits["absolute"] is True
    assert "score" not in list(criteria)
    assert "mine.py:score" not in list(criteria)


def test_options_are_axes_and_set_replaces_them(tmp_path: Path) -> None:
    text = SPACE.replace("score(alpha=3)", "plain").replace(
        "train:", '  "mine.py:plain.alpha": [1, 2]\ntrain:'
    )
    space = space_in(tmp_path, text)
    assert space.points == 2
    assert {trial.config.prune.criterion[-9:] for trial in plan_of(space).trials} == {
        "(alpha=1)",
        "(alpha=2)",
    }
    assert space_in(tmp_path, text, "mine.py:plain.alpha=1,2,3").points == 3
    assert space_in(tmp_path, text, "model=net.py:small(width=2)", "mine.py:plain.alpha=1").points == 1


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ("mine.py:plain(alpha=2),mine.py:plain(alpha=2.0),mine.py:plain", 1),
        ("mine.py:plain(alpha=2),mine.py:plain(alpha=2.5)", 2),
        ("mine.py:soft,mine.py:soft(alpha=1),mine.py:soft(alpha=1.0)", 1),
        ("mine.py:soft(alpha=1),mine.py:soft(alpha=True)", 2),
        ("mine.py:maybe(alpha=1),mine.py:maybe(alpha=1.0)", 1),
        ("mine.py:maybe(alpha=None),mine.py:maybe", 1),
    ],
)
def test_one_number_is_one_value_with_and_without_an_annotation(
    texts: str, count: int, tmp_path: Path
) -> None:
    plan = plan_of(space_in(tmp_path, SPACE, f"criterion={texts}"))
    assert len({trial.key for trial in plan.trials}) == count
    assert len(plan.trials) == count


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ("net.py:rated(rate=0),net.py:rated(rate=0.0),net.py:rated", 1),
        ("net.py:rated(width=6),net.py:rated(width=6.0),net.py:rated", 1),
        ("net.py:rated(rate=0),net.py:rated(rate=0.5)", 2),
        ("net.py:Rated(rate=0),net.py:Rated(rate=0.0)", 1),
    ],
)
def test_one_number_is_one_value_of_a_network(texts: str, count: int, tmp_path: Path) -> None:
    plan = plan_of(space_in(tmp_path, SPACE, f"model={texts}"))
    assert len({trial.key for trial in plan.trials}) == count
    assert len(plan.trials) == count


def test_exclusions_name_files_too(tmp_path: Path) -> None:
    rule = "exclude: [{model: net.py:small, amount: 25%}]\n"
    space = space_in(tmp_path, SPACE.replace("[50%]", "[25%, 50%]") + rule)
    assert [trial.config.prune.amount for trial in plan_of(space).trials] == [0.5]


def test_a_mapping_and_a_path_below_the_space_file(tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    space = space_in(
        tmp_path, SPACE.replace('["net.py:small(width=6)"]', "[{method: nets/net.py:small, width: 6}]")
    )
    assert own_code.shown(space.axes.model[0]) == "nets/net.py:small(width=6)"


def test_a_finished_sweep_of_own_files_is_planned_anew(plan: Plan) -> None:
    options = SweepOptions("cpu", "fp32")
    assert request_of(plan.space, options) is None
    axes = plan.space.axes.model_copy(
        update={"model": ("slp",), "criterion": (), "schedule": ("one_shot",), "recover": ("none",)}
    )
    assert request_of(plan.space.model_copy(update={"axes": axes}), options) is not None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("net.py:small(", "nett.py:small(", "axes.model[0]: there is no file nett.py; did you mean net.py?"),
        ("net.py:small(", "net.py:smal(",
         "axes.model[0]: net.py has no function 'smal'; did you mean small?"),
        ("width=6", "widht=6",
         "axes.model[0]: unknown option of 'net.py:small' 'widht'; did you mean width?"),
        ("alpha=3", "alpha=9", "axes.criterion[0]: mine.py:score(alpha) is 9.0; it must be in [1, 4]"),
        ("mine.py:score(alpha=3)", "mine.py:wrong",
         "axes.criterion[0]: mine.py:wrong is no criterion: missing a required argument: 'second'; write "
         "def wrong(context, ...), with a default for every option"),
        ("mine.py:halves", "mine.py:score",
         "axes.schedule[0]: mine.py:score is a criterion, and no schedule"),
        ("mine.py:halves", "mine.py:again",
         "axes.schedule[0]: mine.py:again is no schedule: missing a required argument: 'state'; write def "
         "again(pools, *, amount, round, ...), with a default for every option"),
        ("[weight]", '["mine.py:plain"]',
         "axes.granularity[0]: mine.py:plain: a granularity comes from a package, by an entry point of the "
         "group pruning.granularity, and not from a file"),
        ("net.py:small(width=6)", "mlpp",
         "axes.model[0]: unknown model 'mlpp'; did you mean mlp* path/to/file.py:"),
        ("mine.py:score(alpha=3)", "magnitud",
         "axes.criterion[0]: unknown criterion 'magnitud'; did you mean magnitude?; your own: "
         "path/to/file.py:function, or an entry point of the group pruning.criterion"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_the_place_in_the_file(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(SpaceError) as caught:
        space_in(tmp_path, SPACE.replace(old, new))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/space.yaml:")
    start, _, end = message.partition("*")
    assert start in text
    assert end in text
    assert "\n" not in text


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(f"{NET}# another\n")
    with pytest.raises(SpaceError, match=r"two files are called net\.py in this space"):
        space_in(tmp_path, SPACE.replace('"net.py:small(width=6)"', f'"net.py:small", "{other}:small"'))


def test_a_named_space_takes_files_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    space = load_space("quickstart", ["model=net.py:small"])
    assert own_code.shown(space.axes.model[0]) == "net.py:small(width=8)"


def test_what_a_schedule_of_one_s_own_raises_is_one_line(tmp_path: Path) -> None:
    space_in(tmp_path)
    with own_code.relative_to(tmp_path):
        method = schedules.get("mine.py:halves(rounds=3)")
    assert method.options == {"rounds": 3}
    with pytest.raises(ValueError, match=r"mine\.py:halves: AttributeError: .* \(mine\.py, line \d+\)"):
        method(None, amount=0.5, round=1)
    assert replace(method, options={"rounds": 2}).name == method.name


def test_the_example_of_the_docs_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[3] / "docs" / "examples" / "own"
    space = load_space(str(folder / "own.yaml"))
    assert {trial.config.technique for trial in plan_of(space).trials} == {"unstructured", "structured"}
    methods = ["criterion=mine.py:power(alpha=3)", "schedule=mine.py:in_steps", "recover=mine.py:leave"]
    (trial, _) = plan_of(
        load_space(str(folder / "own.yaml"), [*methods, "granularity=weight", "scope=layer"])
    ).trials
    assert own_code.shown(trial.config.prune.schedule) == "mine.py:in_steps(rounds=2)"
