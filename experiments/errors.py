"""Errors of the experiments: each is one line for the user."""

from __future__ import annotations


class ExperimentError(Exception):
    """Something the user can understand and cure; printed as one line."""


class PlanError(ExperimentError):
    """A plan (catalog file or options) that makes no sense."""


class RecordError(ExperimentError):
    """A run directory that cannot be used."""
