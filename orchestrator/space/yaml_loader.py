"""Load YAML as plain data with the line of every value.

Only null, booleans, numbers, text, lists and mappings are read. Size, depth and number of nodes are
limited before anything is built, so that no alias bomb is ever expanded. A duplicate key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

import yaml

from orchestrator.errors import SpaceError
from orchestrator.formatting import escape_character, first_control

Plain = Any  # None, bool, int, float, str, list or dict with text keys
Path = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_NODES = 20_000
MAX_DIGITS = 100  # of one number
TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("null", "bool", "int", "float", "str"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
TAG_PREFIX = "tag:yaml.org,2002:"
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
METHOD_WITH_BRACKETS = re.compile(r"[\w./:-]+\([^()]*\)")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which 1e-3 is a number as in YAML 1.2."""


_Loader.add_implicit_resolver(
    f"{TAG_PREFIX}float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Document:
    """Plain data; `lines` has the line (from 1) of every value and key by its path from the top."""

    data: Plain
    source: str
    lines: Mapping[Path, int]

    def location(self, path: Path) -> str:
        """Return `source:line` of a path, or of its nearest parent that has a line."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.source}:{self.lines.get(path, 1)}"


def load_yaml(text: str, source: str, *, multiline_path: Path = ()) -> Document:
    """Return the single document of `text`. SpaceError, with `source` and line, for what is not allowed.

    Values have no control characters; the value at `multiline_path` may have newlines and tabs.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpaceError(f"{source}: more than {MAX_BYTES // 1024} KiB of text; that is the limit")
    if (index := first_control(text, allowed="\n\r\t")) is not None:
        _raise_control(text[index], f"{source}:{text.count(chr(10), 0, index) + 1}")
    try:
        _check_size(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        details = [getattr(error, name, None) for name in ("context", "problem", "reason")]
        problem = ", ".join(filter(None, details))
        location = f"{source}:{mark.line + 1}" if mark else source
        hint = "" if mark is None else _quotes_hint(text.splitlines()[mark.line : mark.line + 1])
        raise SpaceError(f"{location}: this is no YAML: {problem}{hint}") from error
    lines: dict[Path, int] = {}
    data = None if node is None else _Converter(source, multiline_path, lines, count(1)).convert(node, ())
    return Document(data, source, lines)


def _quotes_hint(lines: Sequence[str]) -> str:
    """Return what to do where a line has a method with brackets that stands outside quotes."""
    outside = QUOTED.sub("", lines[0]) if lines else ""
    match = METHOD_WITH_BRACKETS.search(outside)
    return f'; quote it: "{match[0]}"' if match else ""


def _check_size(text: str, source: str) -> None:
    """Limit depth and nodes as they are written, before PyYAML's recursive composer sees them."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        line = event.start_mark.line + 1 if event.start_mark else 1
        _check_limits(depth, nodes, f"{source}:{line}")


def _check_limits(depth: int, nodes: int, location: str) -> None:
    if depth > MAX_DEPTH:
        raise SpaceError(f"{location}: more than {MAX_DEPTH} levels deep; that is the limit")
    if nodes > MAX_NODES:
        raise SpaceError(f"{location}: more than {MAX_NODES} values, aliases unfolded; that is the limit")


@dataclass(frozen=True)
class _Converter:
    """Converts YAML nodes to plain data and records their lines."""

    source: str
    multiline_path: Path
    lines: dict[Path, int]
    node_counter: Iterator[int]

    def convert(self, node: yaml.Node, path: Path) -> Plain:
        location = self.location(node)
        self.lines.setdefault(path, node.start_mark.line + 1)
        # Checked again: an alias is one node of the text, and is converted as often as it is used.
        _check_limits(len(path), next(self.node_counter), location)
        if node.tag.removeprefix(TAG_PREFIX) not in TAGS[type(node)]:
            raise SpaceError(
                f"{location}: {_tag(node)} is not read; give plain numbers, text, lists and mappings"
            )
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, location, "\n\t" if path == self.multiline_path else "")
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.mapping(node, path)

    def mapping(self, node: yaml.Node, path: Path) -> dict[str, Plain]:
        data: dict[str, Plain] = {}
        for key_node, value in node.value:
            location = self.location(key_node)
            key = _key(key_node, location)
            if key in data:
                first = self.lines[*path, key]
                raise SpaceError(f"{location}: {key!r} is given twice, first on line {first}; give it once")
            self.lines[*path, key] = key_node.start_mark.line + 1
            data[key] = self.convert(value, (*path, key))
        return data

    def location(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"


def _scalar(node: yaml.ScalarNode, location: str, allowed: str) -> Plain:
    is_number = node.tag in (f"{TAG_PREFIX}int", f"{TAG_PREFIX}float")
    if is_number and len(node.value) > MAX_DIGITS:
        raise SpaceError(f"{location}: a number of {len(node.value):,} signs; {MAX_DIGITS} is the most")
    try:
        value = _Loader("").construct_object(node)
    except (ValueError, LookupError, OverflowError) as error:  # what PyYAML raises for `!!int abc`
        raise SpaceError(f"{location}: {node.value[:40]!r} is no {_tag(node)}") from error
    if isinstance(value, str):
        _check_text(value, location, allowed)
    return value


def _key(node: yaml.Node, location: str) -> str:
    # `on` is an option of recoveries, and true to YAML 1.1.
    if isinstance(node, yaml.ScalarNode) and (node.tag == f"{TAG_PREFIX}str" or node.value == "on"):
        _check_text(node.value, location)
        return str(node.value)
    key = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise SpaceError(f"{location}: {key} is no key; keys are names")


def _check_text(text: str, location: str, allowed: str = "") -> None:
    """Raise SpaceError for a control character; YAML itself ends a block's text with a newline."""
    if (index := first_control(text.rstrip("\n"), allowed=allowed)) is not None:
        _raise_control(text[index], location)


def _raise_control(character: str, location: str) -> NoReturn:
    raise SpaceError(
        f"{location}: the control character {escape_character(character)} is in it; remove it "
        "(`about` may have newlines and tabs)"
    )


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG_PREFIX, "!!")[:60]
