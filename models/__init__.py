"""Networks by name: float images [N, C, H, W] in, logits [N, num_classes] out.

A name may carry options in the text form `mlp(widths=[256, 256], bias=True)`; the builders' keyword-only
defaults are the options. Weights are drawn from torch's global generator: the caller seeds. Other packages
add builders by entry points of the group `models.builder`; a module is imported when its name is asked for.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from torch import nn

from extensions import Plugins
from models.cnn import cnn
from models.densenet import densenet121
from models.mlp import mlp
from models.slp import slp

__all__ = ["BUILDERS", "build", "built_from", "parse", "resolve"]

Shape = tuple[int, int, int]
Options = dict[str, Any]  # Any: an option is whatever literal its builder takes
Builder = Callable[..., nn.Module]

OWN: dict[str, Builder] = {
    "slp": slp,
    "mlp": mlp,
    "cnn": cnn,
    "densenet121": densenet121,
}
BUILDERS: Plugins[Builder] = Plugins(
    "model", "models.builder", OWN, is_right=callable, expected="a function that builds a network"
)

MAX_TEXT = 1000  # a name is one line; longer text is refused before it is parsed


def build(model: str, /, *, input_shape: Shape, num_classes: int, **options: object) -> nn.Module:
    """A fresh network, in training mode, on the CPU.

    `model` is a name or the text form; `options` adds to it. `input_shape` is (channels, height, width).
    Raises ValueError for an unknown name or option, an option given twice, or a value that the model refuses.
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
    """The name and *every* option of a model, defaults included: what a key hashes and a record shows."""
    name, given = parse(model)
    if twice := sorted(given.keys() & options.keys()):
        raise ValueError(
            f"option {twice[0]!r} of {name!r} is given twice, in the text and as a keyword; give it once"
        )
    defaults = _defaults(BUILDERS[_known("model", name, BUILDERS)])
    for option in (*given, *options):
        _known(f"option of {name!r}", option, defaults)
    return name, {**defaults, **given, **options}


def built_from(model: str, /) -> tuple[str, ...]:
    """The packages whose versions decide what the model's builder builds: those of its `built_from`."""
    return tuple(getattr(BUILDERS[parse(model)[0]], "built_from", ()))


def parse(text: str) -> tuple[str, Options]:
    """`name` or `name(a=1, b=[2, 3])` as (name, options); literals only, nothing is evaluated.

    Raises ValueError for any other form. The name is not looked up: see `resolve`.
    """
    refused = ValueError(
        f"{text[:80]!r} is no model; write a name or name(option=value), with literal values"
    )
    try:
        tree = ast.parse(text[: MAX_TEXT + 1].strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise refused from error
    whole = not call.args and len(options) == len(call.keywords)  # no positional, no **mapping, no word twice
    if not isinstance(call.func, ast.Name) or not whole or len(text) > MAX_TEXT:
        raise refused
    return call.func.id, options


def _defaults(builder: Callable[..., nn.Module]) -> Options:
    parameters = inspect.signature(builder).parameters.values()
    return {word.name: word.default for word in parameters if word.kind is word.KEYWORD_ONLY}


def _known(kind: str, given: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    if given in allowed:
        return given
    near = get_close_matches(given, allowed, n=3, cutoff=0.5)
    known = f"known: {', '.join(allowed)}" if allowed else "it takes none"
    raise ValueError(
        f"unknown {kind} {given!r}; " + (f"did you mean {' or '.join(near)}?" if near else known)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
