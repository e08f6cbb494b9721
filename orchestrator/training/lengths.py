"""Lengths and points of a training: whole epochs, or a part of it such as `10%`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from orchestrator.config import Train
from pruning.hyperparameters import Converter


def parse_length(value: object) -> int | str:
    """Return whole epochs (`1`, `1.0`) as an integer, a part of the dense training as `50%`.

    ValueError for anything else.
    """
    if isinstance(value, str) and (percent := _percent(value)) is not None:
        return f"{percent:.10g}%"
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value >= 1
        and float(value).is_integer()
    ):
        return int(value)
    try:
        number = float(value) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:
        number = 0.0
    if 0 < number < 1:  # meant as a fraction: show how a part is written
        part = f"'{100 * number:.10g}%'"
        raise ValueError(f"{value!r:.80} is no length; write that part of the dense training as {part}")
    raise ValueError(
        f"{value!r:.80} is no length; give whole epochs, such as 1, or a part of the dense training, such as "
        "'10%'"
    )


def parse_position(value: object) -> int | str:
    """Return a point of the dense training: 0, its start, or as `parse_length`."""
    return 0 if value in (0, "0%") and not isinstance(value, bool) else parse_length(value)


def _percent(text: str) -> float | None:
    """Return the number of a percentage in (0, 100]; None for another text."""
    with suppress(ValueError):
        number = float(text.strip().removesuffix("%"))
        return number if text.strip().endswith("%") and 0 < number <= 100 else None
    return None


Length = Annotated[
    int | str, Converter(parse_length, "whole epochs, or a part of the training such as '10%'")
]
Position = Annotated[
    int | str, Converter(parse_position, "0, whole epochs, or a part of the training such as '10%'")
]


def epochs_of(length: int | str, train: Train) -> int:
    """Return a length in whole epochs, at least 1 for a part of the training. ValueError for others."""
    parsed = parse_length(length)
    return parsed if isinstance(parsed, int) else max(1, round(float(parsed[:-1]) / 100 * train.epochs))


def position_of(point: int | str, train: Train) -> int:
    """Return a point of the dense training in whole epochs; a part may round to 0.

    At least one epoch is left to train. ValueError if it is no point.
    """
    parsed = parse_position(point)
    epochs = parsed if isinstance(parsed, int) else round(float(parsed[:-1]) / 100 * train.epochs)
    return min(epochs, train.epochs - 1)
