"""Fixtures of several folders of tests."""

import os

import pytest

from tests.perf import targets
from tt_flux_kontext.planner.mock_device import available
from tt_flux_kontext.planner.plan import Plan
from tt_flux_kontext.weight_cache import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def no_weight_cache():
    """Tests leave the user's cache alone; those of the cache name a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "off")
        yield


@pytest.fixture(scope="session")
def needs_ttnn():
    """Skips where this Python has no TT-NN; in CI that is a failure."""
    if not available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("this Python has no ttnn wheel (CPython 3.10 or 3.12)")


@pytest.fixture(scope="session")
def square_plans(needs_ttnn) -> dict[str, Plan]:
    """The usual edit, planned on every system of one chip."""
    return targets.square_plans()
