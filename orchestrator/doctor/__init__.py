"""Check what works on this machine, without changing anything, and say how to fix the rest."""

from orchestrator.doctor.checks import run_checks
from orchestrator.doctor.result import CheckResult, Report

__all__ = ["CheckResult", "Report", "run_checks"]
