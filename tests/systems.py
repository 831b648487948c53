"""The systems whose full-size edits every run of the tests plans, and the others, which only slow ones do."""

from collections.abc import Iterable

import pytest

ALWAYS = ("n150", "t3k", "galaxy", "p150")


def slow_unless_always(keys: Iterable[str]) -> list:
    """Parameters of a test, by names of systems or of jobs on them."""
    return [key if key in ALWAYS else pytest.param(key, marks=pytest.mark.slow) for key in keys]
