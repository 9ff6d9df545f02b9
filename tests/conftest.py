"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("kill_plans", "loop_runs")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples each time, so that a failure is the change's. `--hypothesis-profile=default`, as in
# `make test-long`, looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def _seed_everything() -> None:
    random.seed(0)
    for module, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if module in sys.modules:
            getattr(sys.modules[module], seed)(0)


@pytest.fixture(scope="module", autouse=True)
def _seeded_module() -> None:
    """What fixtures draw does not depend on which files ran before."""
    _seed_everything()


@pytest.fixture(autouse=True)
def _seeded_test(_seeded_module: None) -> None:
    """What a test draws does not depend on which tests ran before."""
    _seed_everything()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real benchmark data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TREEPREF_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder} (set TREEPREF_DATA)")
    return folder
