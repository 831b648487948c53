"""The README's plot of systems shows the planner's figures."""

import pytest

from reference.systems import plot
from tt_flux_kontext.planner.plan import PhasePlan, Plan, Request

GB = 10**9


def planned(system: str, split: tuple[int, int], seconds: float) -> Plan:
    """Of one step, with 10 GB in use and 3 GB free."""
    phase = PhasePlan("step", 1, 9 * GB, 10 * GB, 3 * GB, 10**6, 942, 0, 1, 1, 1, seconds, 0.0)
    request = Request((1024, 1024), [(1024, 1024)], steps=1)
    return Plan(system, request, "bfp8_mixed", "bf16", {}, split, phases=[phase])


def test_bars_are_the_plans_figures():
    alone = [planned("n150", (1, 1), 90.0), planned("t3k", (4, 2), 30.0)]
    figure = plot(alone, [planned("t3k", (2, 1), 60.0)])
    seconds, rates, memory = ([bar.get_width() for bar in axes.patches] for axes in figure.axes)
    assert seconds == [90, 30]
    assert rates == pytest.approx([60 / 90, 2, 4])  # the last one with four at once
    assert memory == [13, 13, 10, 10]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["90.0 s", "30.0 s", "0.7", "2.0", "4.0, 4 at once", "10.0 GB", "10.0 GB"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["n150", "t3k"]
