"""What works here and what does not, each with what to do: looked at without changing anything."""

from orchestrator.doctor.checks import run_checks
from orchestrator.doctor.result import CheckResult, Report

__all__ = ["CheckResult", "Report", "run_checks"]
