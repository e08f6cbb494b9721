"""What works here and what does not, each with what to do: looked at without changing anything."""

from orchestrator.doctor.examination import examine
from orchestrator.doctor.finding import Finding, Report

__all__ = ["Finding", "Report", "examine"]
