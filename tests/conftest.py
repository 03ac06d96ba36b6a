"""Fixtures for all tests: tiny random pipelines (fresh for each test) and folders of them (saved once a session)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` works in every test folder


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of the processes that run tests side by side: with more they fight for the cores."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def sd1():
    """A fresh tiny SD 1.x pipeline: flat quick-gelu encoder, convolutional proj_in, eps prediction."""
    import tiny

    return tiny.sd1()


@pytest.fixture
def sd2():
    """A fresh tiny SD 2.x pipeline: gelu encoder, linear proj_in, `!` padding, v prediction."""
    import tiny

    return tiny.sd2()


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SD 1.x pipeline (seed 0) saved as a diffusers folder. Read it only."""
    import tiny

    folder = tmp_path_factory.mktemp("sd1")
    tiny.sd1().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SD 2.x pipeline (seed 0) saved as a diffusers folder. Read it only."""
    import tiny

    folder = tmp_path_factory.mktemp("sd2")
    tiny.sd2().save_pretrained(folder)
    return folder
