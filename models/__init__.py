"""Networks by name: float images [N, C, H, W] in, logits [N, num_classes] out.

A name may have options in the text form `mlp(widths=[256, 256], bias=True)`; they are the builder's
keyword-only parameters. Weights are drawn from torch's global generator, which the caller seeds.

`find_builder` turns a name into a builder: one of BUILDERS (this package's, and those that other packages add
by entry points of the group `models.builder`), `LIBRARY.NAME` of a library in LIBRARIES, or
`path/to/file.py:function`, one's own. A module is imported when its name is asked for. A builder may have
three attributes: `built_from`, the packages whose versions decide what it builds; `canonical(options)`, which
returns equal options for equal networks; and `settled(options, input_shape)`, which returns the options with
what follows from the images written out.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from models import import_guard  # noqa: F401  before anything of `pruning`
from models.cnn import cnn
from models.densenet import densenet121
from models.mlp import mlp, slp
from models.mobilenet import mobilenet_v2
from models.options import random_weights, unknown
from models.own_builders import find_own_builder
from models.resnet import resnet, resnet18, resnet50
from models.vgg import vgg
from models.vit import vit
from models.wide_resnet import wide_resnet
from pruning.user_code import own_code
from pruning.user_code.plugins import Plugins

__all__ = [
    "BUILDERS",
    "LIBRARIES",
    "build",
    "built_from",
    "find_builder",
    "library_builders",
    "parse",
    "random_weights",
    "resolve",
    "settle",
]

Shape = tuple[int, int, int]
Options = dict[str, Any]  # Any: an option is whatever literal its builder takes
Builder = Callable[..., nn.Module]

BUILT_IN: dict[str, Builder] = {
    "slp": slp,
    "mlp": mlp,
    "cnn": cnn,
    "densenet121": densenet121,
    "resnet": resnet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg": vgg,
    "wide_resnet": wide_resnet,
    "mobilenet_v2": mobilenet_v2,
    "vit": vit,
}
BUILDERS: Plugins[Builder] = Plugins(
    "model", "models.builder", BUILT_IN, is_valid=callable, expected="a function that builds a network"
)

# Library -> the module that has its `find_builder(name)`; imported when a name of the library is asked for.
LIBRARIES = {"torchvision": "models.torchvision_models", "timm": "models.timm_models"}
OWN = "your own: path/to/file.py:function, or an entry point of the group models.builder"

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
    return find_builder(name)(tuple(input_shape), num_classes, **resolved)


def find_builder(name: str) -> Builder:
    """Return the function that builds a model. ValueError, with near names, for an unknown one.

    PluginError, which is a ValueError, where the package that has it cannot be imported.
    """
    if own_code.is_own(name):
        return find_own_builder(own_code.pinned(name))
    library, _, network = name.partition(".")
    if name not in BUILDERS and network and library in LIBRARIES:
        builder: Builder = import_module(LIBRARIES[library]).find_builder(network)
        return builder
    if name not in BUILDERS:
        raise ValueError(f"{_unknown_model(name)} ({OWN})")
    return BUILDERS[name]


def _unknown_model(name: str) -> str:
    torchvision = import_module(LIBRARIES["torchvision"]).names()
    if name in torchvision:
        return f"unknown model {name!r}; did you mean torchvision.{name}?"
    return unknown("model", name, [*BUILDERS, *(f"{library}.NAME" for library in LIBRARIES)])


def library_builders() -> dict[str, Builder]:
    """Return `LIBRARY.NAME` -> a builder with the options of all models of that library, for lists of names.

    Its `example` is the name of one of them. No library is imported.
    """
    return {f"{name}.NAME": import_module(module).make_builder("NAME") for name, module in LIBRARIES.items()}


def resolve(model: str, /, **options: object) -> tuple[str, Options]:
    """Return the name and *every* option of a model, defaults included, for keys and records."""
    name, text_options = parse(model)
    name = own_code.pinned(name) if own_code.is_own(name) else name
    shown = own_code.shown(name)
    if twice := sorted(text_options.keys() & options.keys()):
        raise ValueError(
            f"option {twice[0]!r} of {shown!r} is given twice, in the text and as a keyword; give it once"
        )
    builder = find_builder(name)
    parameters = inspect.signature(builder).parameters.values()
    takes_any = any(word.kind is word.VAR_KEYWORD for word in parameters)
    defaults = {word.name: word.default for word in parameters if word.kind is word.KEYWORD_ONLY}
    for option in (*text_options, *options):
        if option not in defaults and not takes_any:
            raise ValueError(unknown(f"option of {shown!r}", option, defaults))
    resolved = {**defaults, **text_options, **options}
    canonical: Callable[[Options], Options] | None = getattr(builder, "canonical", None)
    return name, resolved if canonical is None else canonical(resolved)


def settle(model: str, input_shape: Shape, /) -> tuple[str, Options]:
    """Return the name and every option of a model for images of a shape; no option is `auto` any more."""
    name, options = resolve(model)
    settled: Callable[[Options, Shape], Options] | None = getattr(find_builder(name), "settled", None)
    return name, options if settled is None else settled(options, input_shape)


def built_from(model: str, /) -> tuple[str, ...]:
    """Return the packages whose versions decide what the model is: those in its builder's `built_from`."""
    return tuple(getattr(find_builder(parse(model)[0]), "built_from", ()))


def parse(text: str) -> tuple[str, Options]:
    """Split `name` or `name(a=1, b=[2, 3])` into (name, options); literals only, nothing is evaluated.

    A name may have dots, as in `torchvision.resnet18`, or be that of one's own file. ValueError for any other
    form. The name is not looked up: see `find_builder`.
    """
    paths = "; a path has letters, digits and . / _ + ~ - alone" if ".py" in text else ""
    invalid = ValueError(
        f"{text[:80]!r} is no model; write a name or name(option=value), with literal values{paths}"
    )
    own = own_code.NAME_AT_START.match(text[: MAX_TEXT + 1].strip())
    plain = text if own is None else f"_{text.strip()[own.end() :]}"  # a path is no name to Python's parser
    try:
        tree = ast.parse(plain[: MAX_TEXT + 1].strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise invalid from error
    # no positional argument, no **mapping, no option twice
    is_valid = not call.args and len(options) == len(call.keywords)
    name = _dotted(call.func) if own is None else own[0]
    if not name or (own is not None and _dotted(call.func) != "_") or not is_valid or len(text) > MAX_TEXT:
        raise invalid
    return name, options


def _dotted(tree: ast.expr) -> str:
    """Return `a.b.c` for the tree of such a name, and "" for any other tree."""
    if isinstance(tree, ast.Name):
        return tree.id
    head = _dotted(tree.value) if isinstance(tree, ast.Attribute) else ""
    return f"{head}.{tree.attr}" if isinstance(tree, ast.Attribute) and head else ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
