"""Suites: pinned prompts, seeds, sampling and judges. A suite is a readable file; writing one needs no code."""

from erasekit.evaluation.suites.groups import GROUPS, Group
from erasekit.evaluation.suites.load import load_suite, suite_names
from erasekit.evaluation.suites.parts import Prompt, Sampling, Target
from erasekit.evaluation.suites.suite import Suite

__all__ = ["GROUPS", "Group", "Prompt", "Sampling", "Suite", "Target", "load_suite", "suite_names"]
