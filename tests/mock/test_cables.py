"""Systems that lack cables, on TT-NN's mock device: they work without a ring, or a sentence says what is the matter."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.planner.systems import SYSTEMS, Cable


@pytest.fixture
def opened(monkeypatch) -> Callable[[str, Sequence[Cable]], dict]:
    """What a system with other cables is opened as, and what was said."""

    def open_system(name: str, cables: Sequence[Cable]) -> dict:
        monkeypatch.setitem(SYSTEMS, name, replace(SYSTEMS[name], cables=tuple(cables)))
        (answer,) = run(name, "tests.mock.lacking_cables", None)
        return answer

    return open_system


def test_a_ring_without_a_cable_is_a_line(opened):
    first, *others = SYSTEMS["p150x4"].cables
    assert opened("p150x4", [first, *others]) == {"shape": [1, 4], "rings": [True], "messages": []}
    assert opened("p150x4", others) == {"shape": [1, 4], "rings": [False], "messages": []}


def test_a_t3k_without_a_cable_is_not_known_as_one(opened):
    on_board, _, *others = SYSTEMS["t3k"].cables
    answer = opened("t3k", [on_board, *others])
    (message,) = answer["messages"]
    assert answer["shape"] == [1, 2]
    assert "Of the 8 chips that TT-NN finds 2 will be used" in message and "a cable may be missing" in message


def test_a_t3k_with_half_a_cable_can_not_be_opened(opened):
    first, *others = SYSTEMS["t3k"].cables
    answer = opened("t3k", [replace(first, width=1), *others])
    (message,) = answer["messages"]
    assert answer["shape"] == [] and "can't open a mesh of 2 x 4 of the 8 chips that it finds" in message
