"""Whether full-size edits could be replayed, as far as the mock device can tell: it has no traces.

A trace repeats operations at the addresses that they had. So whatever is replayed must have the same ones each time.
"""

import pytest

from tt_flux_kontext.planner.mock_device import run

STEPS = 4


@pytest.mark.parametrize("system,split,traces", [("n150", (1, 1), 1), ("t3k", (4, 2), 2)])
def test_steps_repeat(system, split, traces):
    """From the second one on, which all but the first are."""
    first, *steps = run(system, "tests.mock.repeat_steps", {"split": split, "steps": STEPS})
    assert len(steps) == STEPS - 1 and len(first["operations"]) > 900
    for what in ("operations", "programs"):  # none is compiled any more, which a capture can't
        assert all(step[what] == first[what] for step in steps)
    assert all(step["addresses"] == steps[0]["addresses"] for step in steps)
    turns = [step["turns"] for step in steps]
    assert len(set(map(str, turns))) == traces
    assert turns[:-traces] == turns[traces:]


@pytest.mark.parametrize("system,split", [("n150", (1, 1)), ("t3k", (4, 2))])
def test_models_repeat(system, split):
    """T5 and the VAE. The first time differs in its addresses, since then what a model keeps is put between."""
    lines = list(run(system, "tests.mock.repeat_steps", {"split": split, "times": 3}))
    for name in ("t5", "vae encoder", "vae decoder"):
        first, *again = (line for line in lines if line["model"] == name)
        assert len(again) == 2 and len(first["operations"]) > 200
        for what in ("operations", "programs"):
            assert all(each[what] == first[what] for each in again)
        assert again[0]["addresses"] == again[1]["addresses"]
