"""Methods by name: what a space file, the command line and the docs read.

A method is one function under one decorator. Its keyword-only parameters with a default are its
hyper-parameters; `Annotated[float, Between(0, 1)]` gives their range, `Form(read, allowed)` in its
place how a value is brought into its one form. The text form is
`name` or `name(p=0.5, rounds=10)`. Other packages add methods by an entry point of the
group `pruning.<kind>`, whose module is imported when its name is asked for.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from extensions import PluginError, entries, load, top_package, warn_once, warn_taken, wrong_part
from pruning.scalars import plain, real_number, whole_number

Value = Any  # a literal of a space file: number, text, bool, None, or a list of these
Function = Callable[..., Any]  # what a method returns differs by kind


@dataclass(frozen=True)
class Between:
    """A closed range; `above` makes it open below, `under` open above."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    under: bool = False

    def holds(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.under else value <= self.high)

    def __str__(self) -> str:
        return f"{'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.under else ']'}"


@dataclass(frozen=True)
class Form:
    """How a value is read: `read` gives its one form, or raises ValueError with what is `allowed`."""

    read: Callable[[Any], Any]  # a value as a space file has it
    allowed: str


@dataclass(frozen=True)
class Method:
    """A function with all its hyper-parameters bound; `traits` is what its decorator said of it."""

    name: str
    options: Mapping[str, Value]
    function: Function
    traits: Mapping[str, Value] = field(default_factory=dict)

    def __call__(self, *args: object, **keywords: object) -> Any:  # see Function
        return self.function(*args, **keywords, **self.options)

    def __str__(self) -> str:
        """The text form, with the options that differ from their defaults."""
        defaults = hyperparameters(self.function)
        given = {key: value for key, value in self.options.items() if value != defaults[key].default}
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" if given else self.name


@dataclass(frozen=True)
class Hyperparameter:
    """`kind` is the type if it is a plain one; `hint` is what the signature says, plain or not."""

    default: Value
    kind: type | None
    between: Between | None
    hint: Any = None  # a type, or one of typing's forms
    form: Form | None = None

    @property
    def allowed(self) -> str:
        """What may be given, in one phrase: `float in [0, 1]`, `list[int]`."""
        if self.form is not None:
            return self.form.allowed
        form = (
            self.hint.__name__ if isinstance(self.hint, type) and not get_args(self.hint) else str(self.hint)
        )
        form = form.replace("collections.abc.", "").replace("Sequence[", "list[")
        bounded = self.between is not None and math.isfinite(min(self.between.high, -self.between.low))
        return f"{form} in {self.between}" if bounded else form


@cache  # a plan of many thousand trials asks for it as often
def hyperparameters(function: Function) -> Mapping[str, Hyperparameter]:
    """The keyword-only parameters with a default: their default, type and range.

    Without types where a function names some that it does not import.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        hints = {}
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            hint = hints.get(name)
            extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            plain = get_args(hint)[0] if extras else hint
            between = next((extra for extra in extras if isinstance(extra, Between)), None)
            form = next((extra for extra in extras if isinstance(extra, Form)), None)
            kind = plain if plain in (int, float, bool, str) else None
            found[name] = Hyperparameter(parameter.default, kind, between, plain, form)
    return MappingProxyType(found)


def parse(text: str) -> tuple[str, dict[str, Value]]:
    """`name(a=1, b=[2, 3])` -> (name, options). ValueError where it is neither that nor a name."""
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    try:
        call = ast.parse(f"_({(match and match[2]) or ''})", mode="eval").body
        if match and isinstance(call, ast.Call) and not call.args and all(item.arg for item in call.keywords):
            return match[1], {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # brackets a thousand deep
        pass
    raise ValueError(f"{text!r:.200} is no method; write name or name(option=value)")


class Registry:
    """The methods of one kind; entries are functions, `get` binds their options."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, tuple[Function, dict[str, Value]]] = {}

    @property
    def group(self) -> str:
        """The group of entry points by which other packages add methods."""
        return f"pruning.{self.kind}"

    def register(self, name: str | None = None, **traits: Value) -> Callable[[Function], Function]:
        """Decorator: the function under its own name or `name`; ValueError if that is taken."""

        def add(function: Function) -> Function:
            key = name or function.__name__
            if key in self._functions:
                raise ValueError(f"{self.kind} {key!r} is registered already")
            self._functions[key] = (function, dict(traits))
            return function

        return add

    def __iter__(self) -> Iterator[str]:
        """All names; nothing is imported for it."""
        return iter(sorted(self._functions.keys() | entries(self.group).keys()))

    def working(self) -> Iterator[Method]:
        """Every method by its name; one that cannot be imported is left out with a warning."""
        for name in self:
            try:
                yield self.get(name)
            except PluginError as error:
                warn_once(error.warning)

    def get(self, spec: str | Mapping[str, Value] | Method) -> Method:
        """The method for a name, a text form, or `{"method": name, option: value}`; ValueError else."""
        if isinstance(spec, Method):
            return spec
        if isinstance(spec, Mapping):
            options = dict(spec)
            name = str(options.pop("method", ""))
        else:
            name, options = parse(str(spec))
        self._load(name)
        if name not in self._functions:
            raise ValueError(self._unknown(self.kind, name, list(self)))
        function, traits = self._functions[name]
        return Method(name, self._checked(name, function, options), function, traits)

    def _checked(self, name: str, function: Function, options: Mapping[str, Value]) -> dict[str, Value]:
        known = hyperparameters(function)
        for key in options:
            if key not in known:
                raise ValueError(self._unknown(f"option of {name}", key, known))
        bound = {key: typed(f"{name}({key})", options.get(key, hp.default), hp) for key, hp in known.items()}
        check = self._functions[name][1].get("check")
        if check is not None:
            check(**bound)
        return bound

    def _load(self, name: str) -> None:
        """Import what a name needs; for one that nobody lists, every module that might register it."""
        others = entries(self.group)
        if name in self._functions:
            if name in others and self._is_taken(name):
                warn_taken(self.kind, others[name])
        elif name in others:
            load(self.kind, others[name])
            if name not in self._functions:
                raise wrong_part(self.kind, others[name], f"registers no {self.kind} of that name")
        else:
            for entry in others.values():
                if entry.name in self._functions:
                    continue
                try:
                    load(self.kind, entry)
                except PluginError as error:
                    warn_once(error.warning)

    def _is_taken(self, name: str) -> bool:
        """Whether another package than that of the entry point has registered the name."""
        function, _ = self._functions[name]
        return function.__module__.partition(".")[0] in ("pruning", "orchestrator") and top_package(
            entries(self.group)[name]
        ) not in ("pruning", "orchestrator")

    @staticmethod
    def _unknown(what: str, given: str, known: Iterable[str]) -> str:
        known = list(known)
        near = get_close_matches(given, known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
        )
        return f"unknown {what} {given!r}; {hint}"


def typed(label: str, value: Value, hyper: Hyperparameter) -> Value:
    """The value of one option in its own type; ValueError for another type, or outside the range.

    Numbers may be numpy's or torch's (see `pruning.scalars`).
    """
    if value is None and hyper.default is None:
        return None
    value = plain(value)
    if hyper.form is not None:
        try:
            value = hyper.form.read(value)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
    if hyper.kind is float and (real := real_number(value)) is not None:
        value = real
    if hyper.kind is int and (whole := whole_number(value)) is not None:
        value = whole
    if hyper.kind is not None and type(value) is not hyper.kind:
        raise ValueError(f"{label} is {value!r}; a value of type {hyper.kind.__name__} is needed")
    if hyper.between is not None and not hyper.between.holds(value):
        raise ValueError(f"{label} is {value!r}; it must be in {hyper.between}")
    return value
