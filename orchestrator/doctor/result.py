"""The result of one check, and the report of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "lacking", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """`broken` keeps a sweep on digits from running, `lacking` does not; `do` is what helps."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    findings: tuple[CheckResult, ...]

    @property
    def works(self) -> bool:
        """Whether a sweep on digits would run."""
        return all(finding.state != "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:  # JSON
        return {"works": self.works, "findings": [asdict(finding) for finding in self.findings]}

    def lines(self) -> Iterator[str]:
        """The same for a reader."""
        width = max(len(finding.name) for finding in self.findings)
        for finding in self.findings:
            yield f"{finding.state:<7}  {finding.name:<{width}}  {finding.found}"
            if finding.fix:
                yield f"{'':<7}  {'':<{width}}  -> {finding.fix}"
        broken = [finding.name for finding in self.findings if finding.state == "broken"]
        yield (
            f"a sweep will not run: see {', '.join(broken)}" if broken else "a sweep on digits will run here"
        )
