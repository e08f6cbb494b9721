"""Methods by name, for space files, the command line and the docs.

A method is one function under one decorator; see `hyperparameters` for its options. The text form is `name`
or `name(p=0.5, rounds=10)`. Other packages add methods by an entry point of the group `pruning.<kind>`, whose
module is imported when its name is asked for. A function of one's own file needs neither: its name is
`path/to/file.py:function`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any

from pruning.hyperparameters import (
    Between,
    Converter,
    Function,
    Value,
    convert_option,
    hyperparameters,
)
from pruning.user_code import own_code, plugins
from pruning.user_code.functions import find_method, set_traits
from pruning.user_code.plugins import PluginError

__all__ = ["Between", "Converter", "Method", "Registry", "parse_method"]  # what plug-ins import

OWN_PACKAGES = ("pruning", "orchestrator")
MOST_CACHED = 4096  # texts of methods: a plan asks for the same few at every point
METHOD = re.compile(rf"\s*({own_code.NAME_PATTERN}|[\w.-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Method:
    """A function with all its hyper-parameters bound; `traits` are the keywords of its decorator."""

    name: str
    options: Mapping[str, Value]
    function: Function
    traits: Mapping[str, Value] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as people read it: without the pin of a file of one's own."""
        return own_code.shown(self.name)

    def __call__(self, *args: object, **keywords: object) -> Any:  # see Function
        return self.function(*args, **keywords, **self.options)

    def text_options(self, options: Mapping[str, Value]) -> dict[str, Value]:
        """Return those of `options` that a text has, in the order of their definition.

        An option of the trait `added_later` that has its default is left out: texts, and the keys that are
        made of them, stay what they were before it was added.
        """
        later, defaults = self.traits.get("added_later", ()), hyperparameters(self.function)
        names = (*(name for name in self.options if name in options), *(options.keys() - self.options.keys()))
        return {n: options[n] for n in names if n not in later or options[n] != defaults[n].default}

    def __str__(self) -> str:
        """Return the text form, with the options that differ from their defaults."""
        defaults = hyperparameters(self.function)
        changed = [
            f"{key}={value!r}" for key, value in self.options.items() if value != defaults[key].default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def parse_method(text: str) -> tuple[str, dict[str, Value]]:
    """Split `name(a=1, b=[2, 3], c=true)` into (name, options). ValueError for any other form."""
    name, options = _parse_method(text)
    return name, deepcopy(options) if options else {}


@lru_cache(maxsize=MOST_CACHED)
def _parse_method(text: str) -> tuple[str, dict[str, Value]]:
    match, is_repeated = METHOD.fullmatch(text), False
    try:
        # A call of `_`, as a name with a dash is none to Python's parser.
        call = ast.parse(f"_({(match and match[2]) or ''})", mode="eval").body
        if match and isinstance(call, ast.Call) and not call.args and all(item.arg for item in call.keywords):
            values = {str(item.arg): _YamlWords().visit(item.value) for item in call.keywords}
            is_repeated = len(values) < len(call.keywords)
            if not is_repeated:
                return match[1], {name: ast.literal_eval(value) for name, value in values.items()}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # brackets a thousand deep
        pass
    if is_repeated:
        raise ValueError(f"{text!r:.200} gives an option twice; give it once")
    is_cut_off = text.count("(") != text.count(")")  # YAML ends a text without quotes at a comma
    hint = ", within quotes where it has a comma or brackets" if is_cut_off else ""
    raise ValueError(f"{text!r:.200} is no method; write name or name(option=value){hint}")


class _YamlWords(ast.NodeTransformer):
    """Read `true`, `false` and `null` as Python's constants, and other words as text: as YAML does."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        words = {"true": True, "false": False, "null": None}
        # No text has numbers that are not finite; some readers of YAML take the others for booleans.
        is_doubtful = node.id.lower() in ("inf", "nan", "yes", "no", "on", "off")
        return node if is_doubtful else ast.copy_location(ast.Constant(words.get(node.id, node.id)), node)


class Registry:
    """The methods of one kind; entries are functions, `get` binds their options.

    `modules` are those of this package that register further methods when they are imported. A method is
    called with `positional` arguments and `keywords`, beside its options.
    """

    def __init__(
        self,
        kind: str,
        *,
        modules: tuple[str, ...] = (),
        positional: tuple[str, ...] = (),
        keywords: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self._modules = modules
        self._positional, self._keywords = positional, keywords
        self._functions: dict[str, tuple[Function, dict[str, Value]]] = {}
        self._methods: dict[str, Method] = {}  # by text; of registered functions, which stay what they are

    @property
    def group(self) -> str:
        """The group of entry points by which other packages add methods."""
        return f"pruning.{self.kind}"

    def register(self, name: str | None = None, **traits: Value) -> Callable[[Function], Function]:
        """Register the decorated function as `name`, or as what it is called. ValueError for a taken name."""

        def add(function: Function) -> Function:
            key = name or function.__name__
            if own_code.is_own_module(function.__module__):  # its name is its file's, and takes no other's
                set_traits(function, self.kind, traits)
                return function
            if not function.__module__.startswith("pruning."):
                self._import_modules()  # first, so that a plug-in cannot take a name of theirs
            if key in self._functions:
                raise ValueError(f"{self.kind} {key!r} is registered already")
            self._functions[key] = (function, dict(traits))
            return function

        return add

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names; no plug-in is imported for it."""
        self._import_modules()
        return iter(sorted(self._functions.keys() | plugins.entry_points(self.group).keys()))

    def iter_importable(self) -> Iterator[Method]:
        """Yield every method by its name; plug-ins that cannot be imported are left out with a warning."""
        for name in self:
            try:
                yield self.get(name)
            except PluginError as error:
                plugins.warn_once(error.warning)

    def get(self, spec: str | Mapping[str, Value] | Method) -> Method:
        """Return the method for a name, a text form, or `{"method": name, option: value}`.

        `path/to/file.py:function` is relative to the current folder, and its name is pinned. ValueError for
        an unknown name or option, or a value that is not allowed.
        """
        if isinstance(spec, Method):
            return spec
        if isinstance(spec, str) and spec in self._methods:
            return self._methods[spec]
        if isinstance(spec, Mapping):
            options = dict(spec)
            name = str(options.pop("method", ""))
        else:
            name, options = parse_method(str(spec))
        if own_code.is_own(name):
            name = own_code.pinned(name)
            function, traits = self._find_own(name)
        else:
            self._load(name)
            if name not in self._functions:
                raise ValueError(f"{self._unknown(self.kind, name, list(self))}{self._how_to_add()}")
            function, traits = self._functions[name]
        method = Method(name, self._bind(own_code.shown(name), function, traits, options), function, traits)
        if isinstance(spec, str) and not own_code.is_own(name) and len(self._methods) < MOST_CACHED:
            self._methods[spec] = method
        return method

    def _find_own(self, pinned: str) -> tuple[Function, Mapping[str, Value]]:
        if not self._positional:
            raise ValueError(
                f"{own_code.shown(pinned)}: a {self.kind} comes from a package, by an entry point of the "
                f"group {self.group}, and not from a file"
            )
        return find_method(self.kind, pinned, self._positional, self._keywords)

    def _how_to_add(self) -> str:
        own = "path/to/file.py:function, or " if self._positional else ""
        return f"; your own: {own}an entry point of the group {self.group}"

    def _bind(
        self, name: str, function: Function, traits: Mapping[str, Value], options: Mapping[str, Value]
    ) -> dict[str, Value]:
        allowed = hyperparameters(function)
        for key in options:
            if key not in allowed:
                raise ValueError(self._unknown(f"option of {name}", key, allowed))
        bound = {
            key: convert_option(f"{name}({key})", options.get(key, option.default), option)
            for key, option in allowed.items()
        }
        if traits.get("check") is not None:
            traits["check"](**bound)
        return bound

    def _load(self, name: str) -> None:
        """Import the module that registers a name; for an unlisted name, all that might register it."""
        self._import_modules()
        entries = plugins.entry_points(self.group)
        if name in self._functions:
            if name in entries and self._is_taken(name):
                plugins.warn_name_taken(self.kind, entries[name])
        elif name in entries:
            plugins.load_plugin(self.kind, entries[name])
            if name not in self._functions:
                problem = f"registers no {self.kind} of that name"
                raise plugins.unusable_error(self.kind, entries[name], problem)
        else:
            for entry in (entry for entry in entries.values() if entry.name not in self._functions):
                try:
                    plugins.load_plugin(self.kind, entry)
                except PluginError as error:
                    plugins.warn_once(error.warning)

    def _import_modules(self) -> None:
        # Late, as these modules import the one that makes the registry. The second import costs microseconds.
        for module in self._modules:
            import_module(module)

    def _is_taken(self, name: str) -> bool:
        """Return whether the name is a built-in method's, and its entry point another package's."""
        top_level = self._functions[name][0].__module__.partition(".")[0]
        plugin = plugins.top_level_module(plugins.entry_points(self.group)[name])
        return top_level in OWN_PACKAGES and plugin not in OWN_PACKAGES

    @staticmethod
    def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
        known = list(known)
        near = " or ".join(get_close_matches(name, known, n=3, cutoff=0.5))
        hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
        return f"unknown {kind} {name!r}; {hint}"
