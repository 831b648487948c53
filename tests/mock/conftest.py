"""All tests in this folder need real TT-NN."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def everything_here_needs_ttnn(needs_ttnn):
    pass
