"""All tests in this folder need real TT-NN."""

import os

import pytest

from tt_flux_kontext.planner.mock_device import available


@pytest.fixture(scope="session", autouse=True)
def needs_ttnn():
    if not available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("this Python has no ttnn wheel (CPython 3.10 or 3.12)")
