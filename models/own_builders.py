"""Builders in files of one's own: functions of image shape and number of classes, or classes of modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.user_code import own_code
from pruning.user_code.functions import as_declared, hints_of, is_literal, options_of, parameters_of
from pruning.user_code.imports import IMPORT_FIRST, reason
from pruning.user_code.sources import OwnCodeError

# The package index's torchvision does not import beside a CPU torch unless this module comes first.
IMPORT_FIRST.update(dict.fromkeys(("torchvision", "timm"), "models.torchvision_compat"))

Shape = tuple[int, int, int]
Options = dict[str, Any]  # Any: an option is whatever literal its builder takes
FORM = "(input_shape, num_classes, *, option=default)"
SHAPE, CLASSES = "input_shape", "num_classes"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_checked: set[tuple[str, str, Shape, int]] = set()


@cache
def find_own_builder(pinned: str) -> Callable[..., nn.Module]:
    """Return the builder of a pinned name, with keyword-only options.

    OwnCodeError for a function that takes no number of classes. What the function raises, and a network whose
    output is not [N, num_classes], is a ValueError of one line.
    """
    function, shown = own_code.find_function(pinned), own_code.shown(pinned)
    parameters = parameters_of(function, pinned)
    by_position = _positional(parameters, shown)
    others = [p for p in parameters if p.name not in (SHAPE, CLASSES, *by_position)]
    needed = [p.name for p in others if p.kind in NAMED and p.default is p.empty]
    tuples = {p.name for p in others if isinstance(p.default, tuple)}
    names = {p.name for p in parameters}

    def build(input_shape: Shape, num_classes: int, **options: Any) -> nn.Module:  # literals
        values = {SHAPE: input_shape, CLASSES: num_classes}
        arguments = [values[name] for name in by_position.values()]
        keywords = {name: value for name, value in values.items() if not by_position and name in names}
        # A space file has lists alone.
        options = {name: tuple(v) if name in tuples and v is not None else v for name, v in options.items()}
        try:
            net = function(*arguments, **keywords, **options)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"{shown}: {reason(error)}") from error
        _check_once((pinned, repr(options), input_shape, num_classes), net)
        return net  # type: ignore[no-any-return]  # `_check_once` has seen to it

    required = [p.replace(kind=p.KEYWORD_ONLY) for p in others if p.name in needed]
    further = [p for p in others if p.kind is p.VAR_KEYWORD]
    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in (SHAPE, CLASSES)]
    signature = inspect.Signature([*first, *required, *options_of(others), *further])
    build.__doc__ = inspect.getdoc(function)
    canonical = partial(_check_options, shown=shown, needed=needed, signature=signature)
    vars(build).update(__signature__=signature, canonical=partial(canonical, hints=hints_of(function)))
    libraries = (*getattr(function, "built_from", ()), *own_code.code_of(pinned).libraries)
    vars(build)["built_from"] = tuple(dict.fromkeys(libraries))
    return build


def _check_options(
    options: Options,
    *,
    shown: str,
    needed: Sequence[str],
    signature: inspect.Signature,
    hints: Mapping[str, Any],
) -> Options:
    """Return the options, of numbers as they are declared.

    ValueError where one that is needed is missing, or one is no literal.
    """
    missing = [name for name in needed if name not in options or options[name] is inspect.Parameter.empty]
    if missing:
        raise ValueError(
            f"{shown} needs {', '.join(missing)} as well; write {shown}({missing[0]}=...), or give "
            f"{'it' if len(missing) == 1 else 'them'} a default"
        )
    if bad := [name for name, value in options.items() if not is_literal(value)]:
        raise ValueError(f"{shown}: {bad[0]} is {options[bad[0]]!r:.80}; give numbers, texts or lists")
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    return {name: as_declared(value, hints.get(name), defaults.get(name)) for name, value in options.items()}


def _positional(parameters: Sequence[inspect.Parameter], shown: str) -> dict[str, str]:
    """Return which parameters take shape and classes by position: none, where they have these names."""
    names = [p.name for p in parameters if p.kind in NAMED]
    if CLASSES in names:
        return {}
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    bare = [p.name for p in plain if p.default is p.empty]
    if len(bare) < 2:
        text = ", ".join(str(p) for p in parameters)
        function = shown.rpartition(":")[2]
        raise OwnCodeError(f"{shown} takes ({text}), and no num_classes; write {function}{FORM}")
    return dict(zip(bare[:2], (SHAPE, CLASSES), strict=True))


def _check_once(built: tuple[str, str, Shape, int], net: object) -> None:
    """Raise ValueError unless a network takes two images and gives [2, num_classes]; each network once."""
    shown, _, shape, num_classes = own_code.shown(built[0]), *built[1:]
    if not isinstance(net, nn.Module):
        raise ValueError(f"{shown} returns a value of type {type(net).__name__}, and no torch.nn.Module")
    if built in _checked:
        return
    tensor = next(iter([*net.parameters(), *net.buffers()]), torch.empty(0))
    try:
        with _evaluating(net), torch.random.fork_rng(devices=[]), torch.no_grad():
            output = net(torch.zeros((2, *shape), device=tensor.device))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if tensor.is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error)):
            return  # it reads values, which are not there on this device: a network with storage is checked
        raise ValueError(f"{shown} does not take images of {shape}: {reason(error)}") from error
    expected = f"a tensor [N, {num_classes}] of class scores is needed"
    if not isinstance(output, Tensor):
        raise ValueError(f"{shown} gives out a value of type {type(output).__name__}; {expected}")
    if output.shape != (2, num_classes):
        raise ValueError(f"{shown} gives out {list(output.shape)} for 2 images of {shape}; {expected}")
    _checked.add(built)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Within the block, the network is in eval mode; then every module is in its own mode again."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
