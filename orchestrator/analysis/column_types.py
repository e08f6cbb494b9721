"""Columns of hyper-parameters with their own types."""

from __future__ import annotations

import ast
from math import nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def typed(results: DataFrame) -> DataFrame:
    """The table with numbers and booleans in the columns of options, `schedule.p`; NaN where one is missing.

    A column of numbers alone has a number's dtype; one with texts as well holds both.
    """
    for name in [str(c) for c in results.columns if "." in str(c) and "/" not in str(c)]:
        if results[name].dtype == object or str(results[name].dtype) in ("str", "string"):
            results[name] = _typed(results[name])
    return results


def _typed(column: Series[Any]) -> Series[Any]:  # texts, numbers and booleans
    import pandas

    values = [_value(value) for value in column]
    return pandas.Series(values, index=column.index, dtype=object).infer_objects()


def _value(text: object) -> object:
    """What a text stands for: a number, True, False; NaN for nothing; or else itself."""
    if text is None or text == "None":
        return nan
    if not isinstance(text, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float)) else text
