"""Networks by name: float images [N, C, H, W] in, logits [N, num_classes] out.

A name may have options in the text form `mlp(widths=[256, 256], bias=True)`; they are the builder's
keyword-only parameters. Weights are drawn from torch's global generator, which the caller seeds. Other
packages add builders by entry points of the group `models.builder`; a module is imported when its name is
asked for.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from torch import nn

from models.cnn import cnn
from models.densenet import densenet121
from models.mlp import mlp, slp
from pruning.plugins import Plugins

__all__ = ["BUILDERS", "build", "built_from", "parse", "resolve"]

Shape = tuple[int, int, int]
Options = dict[str, Any]  # Any: an option is whatever literal its builder takes
Builder = Callable[..., nn.Module]

BUILT_IN: dict[str, Builder] = {
    "slp": slp,
    "mlp": mlp,
    "cnn": cnn,
    "densenet121": densenet121,
}
BUILDERS: Plugins[Builder] = Plugins(
    "model", "models.builder", BUILT_IN, is_valid=callable, expected="a function that builds a network"
)

MAX_TEXT = 1000  # a name is one line; longer text is refused before it is parsed


def build(model: str, /, *, input_shape: Shape, num_classes: int, **options: object) -> nn.Module:
    """Return a new network, in training mode, on the CPU.

    `model` is a name or the text form; `options` are added to those in the text. `input_shape` is (channels,
    height, width). ValueError for an unknown name or option, an option in both, or a value that the model
    refuses.
    """
    name, resolved = resolve(model, **options)
    if len(input_shape) != 3 or not all(_is_count(size) for size in input_shape):
        raise ValueError(
            f"input_shape is {input_shape!r}; give three positive integers (channels, height, width)"
        )
    if not _is_count(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}; give an integer of at least 2")
    return BUILDERS[name](tuple(input_shape), num_classes, **resolved)


def resolve(model: str, /, **options: object) -> tuple[str, Options]:
    """Return the name and *every* option of a model, defaults included, for keys and records."""
    name, text_options = parse(model)
    if twice := sorted(text_options.keys() & options.keys()):
        raise ValueError(
            f"option {twice[0]!r} of {name!r} is given twice, in the text and as a keyword; give it once"
        )
    _check_name("model", name, BUILDERS)
    parameters = inspect.signature(BUILDERS[name]).parameters.values()
    defaults = {word.name: word.default for word in parameters if word.kind is word.KEYWORD_ONLY}
    for option in (*text_options, *options):
        _check_name(f"option of {name!r}", option, defaults)
    return name, {**defaults, **text_options, **options}


def built_from(model: str, /) -> tuple[str, ...]:
    """Return the packages whose versions decide what the model is: those in its builder's `built_from`."""
    return tuple(getattr(BUILDERS[parse(model)[0]], "built_from", ()))


def parse(text: str) -> tuple[str, Options]:
    """Split `name` or `name(a=1, b=[2, 3])` into (name, options); literals only, nothing is evaluated.

    ValueError for any other form. The name is not looked up: see `resolve`.
    """
    invalid = ValueError(
        f"{text[:80]!r} is no model; write a name or name(option=value), with literal values"
    )
    try:
        tree = ast.parse(text[: MAX_TEXT + 1].strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise invalid from error
    # no positional argument, no **mapping, no option twice
    is_valid = not call.args and len(options) == len(call.keywords)
    if not isinstance(call.func, ast.Name) or not is_valid or len(text) > MAX_TEXT:
        raise invalid
    return call.func.id, options


def _check_name(kind: str, name: str, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if name not in allowed:
        near = " or ".join(get_close_matches(name, allowed, n=3, cutoff=0.5))
        known = f"known: {', '.join(allowed)}" if allowed else "it takes none"
        raise ValueError(f"unknown {kind} {name!r}; " + (f"did you mean {near}?" if near else known))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
