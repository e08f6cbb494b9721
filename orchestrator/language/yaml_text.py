"""YAML text -> plain data, with the line of every value.

Only null, booleans, numbers, text, lists and mappings are read. Size, depth and number of nodes are
limited before anything is built, so that no alias bomb is ever unfolded. A key given twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import yaml

from orchestrator.errors import SpaceError

Plain = Any  # None, bool, int, float, str, list or dict with text keys
Path = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_NODES = 20_000
TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("null", "bool", "int", "float", "str"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
TAG_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, and 1e-3 is a number as in YAML 1.2."""


_Loader.add_implicit_resolver(
    f"{TAG_PREFIX}float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Document:
    """`lines` has the line (from 1) of every value and key, by its path from the top."""

    data: Plain
    source: str
    lines: Mapping[Path, int]

    def where(self, path: Path) -> str:
        """`source:line` of a path, or of the nearest one above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.source}:{self.lines.get(path, 1)}"


def read(text: str, source: str) -> Document:
    """The one document of `text`; SpaceError with `source` and the line for anything that is refused."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpaceError(f"{source}: more than {MAX_BYTES // 1024} KiB of text; that is the limit")
    try:
        _limit(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = [getattr(error, name, None) for name in ("context", "problem", "reason")]
        problem = ", ".join(part for part in said if part)
        place = f"{source}:{mark.line + 1}" if mark else source
        raise SpaceError(f"{place}: this is no YAML: {problem}") from error
    lines: dict[Path, int] = {}
    return Document(None if node is None else _plain(node, (), source, lines, count(1)), source, lines)


def _limit(text: str, source: str) -> None:
    """Depth and nodes as written, before PyYAML's recursive composer sees them."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        line = event.start_mark.line + 1 if event.start_mark else 1
        _refuse_beyond(depth, nodes, f"{source}:{line}")


def _refuse_beyond(depth: int, nodes: int, place: str) -> None:
    if depth > MAX_DEPTH:
        raise SpaceError(f"{place}: more than {MAX_DEPTH} levels deep; that is the limit")
    if nodes > MAX_NODES:
        raise SpaceError(f"{place}: more than {MAX_NODES} values, aliases unfolded; that is the limit")


def _plain(node: yaml.Node, path: Path, source: str, lines: dict[Path, int], counter: Iterator[int]) -> Plain:
    line = node.start_mark.line + 1
    place = f"{source}:{line}"
    lines.setdefault(path, line)
    # Again, for aliases: here they are met as often as they are used.
    _refuse_beyond(len(path), next(counter), place)
    if node.tag.removeprefix(TAG_PREFIX) not in TAGS[type(node)]:
        raise SpaceError(f"{place}: {_tag(node)} is not read; give plain numbers, text, lists and mappings")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, place)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), source, lines, counter) for i, item in enumerate(node.value)]
    data: dict[str, Plain] = {}
    for key_node, value in node.value:
        key = _key(key_node, source)
        if key in data:
            first = lines[*path, key]
            place = f"{source}:{key_node.start_mark.line + 1}"
            raise SpaceError(f"{place}: {key!r} is given twice, first on line {first}; give it once")
        lines[*path, key] = key_node.start_mark.line + 1
        data[key] = _plain(value, (*path, key), source, lines, counter)
    return data


def _scalar(node: yaml.ScalarNode, place: str) -> Plain:
    try:
        return _Loader("").construct_object(node)
    except (ValueError, LookupError) as error:  # what PyYAML raises for `!!int abc`, or 5000 digits
        raise SpaceError(f"{place}: {node.value[:40]!r} is no {_tag(node)}") from error


def _key(node: yaml.Node, source: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG_PREFIX}str":
        return str(node.value)
    given = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise SpaceError(f"{source}:{node.start_mark.line + 1}: {given} is no key; keys are names")


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG_PREFIX, "!!")[:60]
