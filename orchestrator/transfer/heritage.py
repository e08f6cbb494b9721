"""What a driver knows of the network that the trainings of its sweep start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Heritage:
    """The network of --from. `sha256`: of the manifest among its `files`, which hold it whole.

    `source` is what was given, `name` a run's id or a file's name. `model`, `input_shape` and `num_classes`
    build it; `classes` are None where they are not known; `pruned`: some of its weights are masked.
    """

    sha256: str
    source: str
    name: str
    model: str
    input_shape: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...] | None
    shapes: Mapping[str, tuple[int, ...]]
    pruned: bool
    files: Mapping[str, bytes] = field(repr=False)
