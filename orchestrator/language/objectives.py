"""How the points of a space are found, and what a search drives at: `search:` in a space file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator.errors import unknown
from orchestrator.language.value_types import Closed, Seed, Whole
from orchestrator.measure import Measurement

ON_TEST_IMAGES = ("accuracy", "top5", "loss")
DRIVING = tuple(f"final/{field.name}" for field in fields(Measurement) if field.name not in ON_TEST_IMAGES)
DEFAULT = "final/val_accuracy"
MAX_TRIALS = 10_000
Direction = Literal["max", "min"]


def _check_names(objectives: Mapping[str, Direction]) -> Mapping[str, Direction]:
    if not objectives:
        raise ValueError(f"no objective is given; write {{{DEFAULT}: max}}, or leave it out")
    for name in objectives:
        plain = name.removeprefix("final/")
        if plain in ON_TEST_IMAGES:
            better = "final/val_loss" if plain == "loss" else DEFAULT
            raise ValueError(f"{name} is of the test images, by which nothing is chosen; take {better}")
        if name not in DRIVING:
            raise ValueError(unknown("objective", name, DRIVING))
    return objectives


def _default() -> dict[str, Direction]:
    return {DEFAULT: "max"}


Objectives = Annotated[dict[str, Direction], AfterValidator(_check_names)]


class Search(Closed):
    """`trials` counts points, each run for every seed; the first `startup` of tpe are drawn at random.

    `objectives`: final metrics of validation images and costs, and which way is better; for `random`, too,
    which points are shown as the best. `seed` is that of the sampler.
    """

    method: Literal["grid", "random", "tpe"] = "grid"
    trials: Annotated[Whole, Field(ge=1, le=MAX_TRIALS)] | None = None
    objectives: Objectives = Field(default_factory=_default)
    seed: Seed = 0
    startup: Annotated[Whole, Field(ge=0, le=MAX_TRIALS)] = 10

    @property
    def points(self) -> int:
        """How many points a search is to find; 0 for a grid, which has its own."""
        return self.trials or 0

    @model_validator(mode="after")
    def _fitting(self) -> Search:
        given = sorted(self.model_fields_set - {"method"})
        if self.method == "grid" and given:
            raise ValueError(f"a grid has no {' and no '.join(given)}: that is for random and tpe")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"{self.method} needs a number of points: trials: 60")
        if self.method != "tpe" and "startup" in given:
            raise ValueError("startup is for tpe: random draws every point at random")
        return self
