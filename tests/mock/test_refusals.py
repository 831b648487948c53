"""Real TT-NN refuses the wrong calls that the emulator refuses (tests/unit/test_emulator_refusals.py)."""

import pytest

from tests.refusals import CASES, CRASH, SIGNATURES, SILENT
from tt_flux_kontext.planner.mock_device import MockError, run

REFUSED, TAKEN = "refused", "taken"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What TT-NN did with each case."""
    cases, outcomes = [*CASES, *SIGNATURES], {}
    while len(outcomes) < len(cases):
        try:
            for answer in run("n150", "tests.mock.refuse", cases[len(outcomes) :]):
                outcomes[answer["case"]] = REFUSED if answer["refused"] else TAKEN
        except MockError as error:
            if "died of" not in str(error):
                raise
            outcomes[cases[len(outcomes)]] = CRASH  # go on with the next one in a new process
    return outcomes


def test_tt_nn_refuses_the_same_but_what_is_listed(outcomes):
    listed = {case: CRASH if why == CRASH else TAKEN for case, why in SILENT.items()}
    assert outcomes == dict.fromkeys(CASES | SIGNATURES, REFUSED) | listed


def test_enough_are_refused_by_both(outcomes):
    both = list(outcomes.values()).count(REFUSED)
    print(f"\nwrong calls refused by both: {both}; by the emulator alone: {len(outcomes) - both}")
    assert both >= 40
