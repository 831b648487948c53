"""Fixtures of several folders of tests."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import pytest

from tests.perf import targets
from tt_flux_kontext.cache_folder import VARIABLE
from tt_flux_kontext.planner.mock_device import available
from tt_flux_kontext.planner.plan import Plan


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config, items):
    """Of several processes one takes all tests that share the planner's jobs."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.parent.name in ("mock", "perf"):
                item.add_marker(pytest.mark.xdist_group("planner"))


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
def background() -> Iterator[ThreadPoolExecutor]:
    """For jobs, two at a time, while tests go on that don't need them yet."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def begin_square_plan(needs_ttnn, background) -> Callable[[str], Future]:
    """Begins to plan the usual edit on a system, unless that has begun."""
    return cache(lambda key: background.submit(targets.square_plan, key))


@pytest.fixture(scope="session")
def square_plan(begin_square_plan) -> Callable[[str], Plan]:
    """The usual edit, planned on a system."""
    return lambda key: begin_square_plan(key).result()
