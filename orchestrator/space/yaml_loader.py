"""YAML text -> plain data, with the line of every value.

Only null, booleans, numbers, text, lists and mappings are read. Size, depth and number of nodes are
limited before anything is built, so that no alias bomb is ever unfolded. A key given twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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


def read(text: str, source: str, *, of_lines: Path = ()) -> Document:
    """The one document of `text`; SpaceError with `source` and the line for anything that is refused.

    No value has a control character; that at `of_lines` may have newlines and tabs.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpaceError(f"{source}: more than {MAX_BYTES // 1024} KiB of text; that is the limit")
    if (at := first_control(text, allowed="\n\r\t")) is not None:
        _refuse_control(text[at], f"{source}:{text.count(chr(10), 0, at) + 1}")
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
    data = None if node is None else _Reader(source, of_lines, lines, count(1)).plain(node, ())
    return Document(data, source, lines)


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


@dataclass(frozen=True)
class _Reader:
    """What turns YAML's nodes into plain data, and notes their lines."""

    source: str
    of_lines: Path
    lines: dict[Path, int]
    counter: Iterator[int]

    def plain(self, node: yaml.Node, path: Path) -> Plain:
        place = self.place(node)
        self.lines.setdefault(path, node.start_mark.line + 1)
        # Again, for aliases: here they are met as often as they are used.
        _refuse_beyond(len(path), next(self.counter), place)
        if node.tag.removeprefix(TAG_PREFIX) not in TAGS[type(node)]:
            raise SpaceError(
                f"{place}: {_tag(node)} is not read; give plain numbers, text, lists and mappings"
            )
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, place, "\n\t" if path == self.of_lines else "")
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.mapping(node, path)

    def mapping(self, node: yaml.Node, path: Path) -> dict[str, Plain]:
        data: dict[str, Plain] = {}
        for key_node, value in node.value:
            place = self.place(key_node)
            key = _key(key_node, place)
            if key in data:
                first = self.lines[*path, key]
                raise SpaceError(f"{place}: {key!r} is given twice, first on line {first}; give it once")
            self.lines[*path, key] = key_node.start_mark.line + 1
            data[key] = self.plain(value, (*path, key))
        return data

    def place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"


def _scalar(node: yaml.ScalarNode, place: str, allowed: str) -> Plain:
    number = node.tag in (f"{TAG_PREFIX}int", f"{TAG_PREFIX}float")
    if number and len(node.value) > MAX_DIGITS:
        raise SpaceError(f"{place}: a number of {len(node.value):,} signs; {MAX_DIGITS} is the most")
    try:
        found = _Loader("").construct_object(node)
    except (ValueError, LookupError, OverflowError) as error:  # what PyYAML raises for `!!int abc`
        raise SpaceError(f"{place}: {node.value[:40]!r} is no {_tag(node)}") from error
    if isinstance(found, str):
        _check_text(found, place, allowed)
    return found


def _key(node: yaml.Node, place: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG_PREFIX}str":
        _check_text(node.value, place)
        return str(node.value)
    given = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise SpaceError(f"{place}: {given} is no key; keys are names")


def _check_text(text: str, place: str, allowed: str = "") -> None:
    """SpaceError for a control character. A newline that ends a text is YAML's own, of a block."""
    if (at := first_control(text.rstrip("\n"), allowed=allowed)) is not None:
        _refuse_control(text[at], place)


def _refuse_control(sign: str, place: str) -> NoReturn:
    raise SpaceError(
        f"{place}: the control character {escape_character(sign)} is in it; write text without (in `about`, "
        "newlines and tabs may be)"
    )


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG_PREFIX, "!!")[:60]
