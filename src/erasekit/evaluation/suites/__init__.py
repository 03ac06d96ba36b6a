"""Suites: pinned prompts, seeds, sampling and judges. A suite is a readable file; writing one needs no code."""

from erasekit.evaluation.suites.load import load_suite, suite_names
from erasekit.evaluation.suites.suite import GROUPS, Group, Prompt, Sampling, Suite, Target

__all__ = ["GROUPS", "Group", "Prompt", "Sampling", "Suite", "Target", "load_suite", "suite_names"]
