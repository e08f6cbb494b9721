"""What works here and what does not, each with what to do: looked at without changing anything."""

from orchestrator.doctor.checks import examine
from orchestrator.doctor.result import Finding, Report

__all__ = ["Finding", "Report", "examine"]
