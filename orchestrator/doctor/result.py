"""The result of one check, and the report of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "lacking", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """What one check saw, and how to fix it.

    With `broken` a sweep on digits cannot run; `lacking` is a warning.
    """

    name: str
    state: State
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "found": self.message, "do": self.fix}


@dataclass(frozen=True)
class Report:
    results: tuple[CheckResult, ...]

    @property
    def works(self) -> bool:
        """Whether a sweep on digits would run."""
        return all(result.state != "broken" for result in self.results)

    def to_json(self) -> dict[str, Any]:  # JSON
        return {"works": self.works, "findings": [result.to_json() for result in self.results]}

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        width = max(len(result.name) for result in self.results)
        for result in self.results:
            yield f"{result.state:<7}  {result.name:<{width}}  {result.message}"
            if result.fix:
                yield f"{'':<7}  {'':<{width}}  -> {result.fix}"
        broken = [result.name for result in self.results if result.state == "broken"]
        yield (
            f"a sweep will not run: see {', '.join(broken)}" if broken else "a sweep on digits will run here"
        )
