"""Load, export, register, rerun and import models."""
